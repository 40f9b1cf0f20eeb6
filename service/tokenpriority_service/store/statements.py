"""What each database is asked of the table `evidence`, in its own words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import sqlalchemy as sa

from tokenpriority_service.store.blocks import Block, Entry


class Added(NamedTuple):
    """What an INSERT really inserted."""

    bytes: int
    """Of evidence alone."""
    blocks: int


class Oldest(NamedTuple):
    """A row that might be evicted."""

    used_at: float
    number: int
    size: int
    """Bytes of its evidence."""
    row: str
    """The database's own name of the row, good in this transaction."""


class Statements(Protocol):
    """Functions of a connection; the last four are called in a transaction that writes."""

    def read(self, connection: sa.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Block]]:
        """Every row under these keys."""

    def present(self, connection: sa.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Block]]:
        """Every row under these keys, with no bytes of evidence."""

    def insert(self, connection: sa.Connection, entries: Sequence[Entry], now: float) -> Added:
        """Insert the blocks, no two of which are the same row, that are not there yet."""

    def touch(self, connection: sa.Connection, keys: Sequence[bytes], now: float, before: float) -> None:
        """Say that the rows under these keys were used now, where they were last used before that time."""

    def oldest(self, connection: sa.Connection, limit: int) -> list[Oldest]:
        """So many of the rows that were used first, in any order; nobody else deletes them in this transaction."""

    def delete(self, connection: sa.Connection, rows: Sequence[str]) -> None:
        """Delete rows that `oldest` named in this transaction."""
