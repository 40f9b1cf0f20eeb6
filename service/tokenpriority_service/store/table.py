"""The table `evidence`, and the sums over it.

Knows what is read and written together. Functions of a connection: those that write are called in a transaction.
Knows no threads and no failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from tokenpriority_service.store import postgresql_table, sqlite_table
from tokenpriority_service.store.blocks import BLOCK_OVERHEAD, Block, Entry
from tokenpriority_service.store.statements import Statements

READ_KEYS = 1024
"""Keys of one statement."""
EVICT_BLOCKS = 1024
"""Most blocks that one call of `evict` deletes: other writers wait meanwhile."""

Found = dict[bytes, list[Block]]
"""Key -> the blocks under it."""


class Size(NamedTuple):
    """Sums over the table."""

    bytes: int
    """Of evidence alone."""
    blocks: int

    @property
    def cost(self) -> int:
        """Bytes it takes; what max_bytes bounds."""
        return self.bytes + BLOCK_OVERHEAD * self.blocks


def read(connection: sa.Connection, keys: Sequence[bytes], *, evidence: bool = True) -> Found:
    """The blocks that are there under these keys; without `evidence` their bytes are left out."""
    of = _statements(connection)
    found: Found = {}
    for first in range(0, len(keys), READ_KEYS):
        for key, block in (of.read if evidence else of.present)(connection, keys[first : first + READ_KEYS]):
            found.setdefault(key, []).append(block)
    return found


def insert(connection: sa.Connection, entries: Sequence[Entry], *, shard: int, now: float) -> None:
    """Remember blocks; one that is there already stays as it is."""
    _grow(connection, shard, *_statements(connection).insert(connection, entries, now))


def touch(connection: sa.Connection, keys: Sequence[bytes], *, now: float, before: float) -> None:
    """Say that blocks were used now; those used since `before` are left alone."""
    _statements(connection).touch(connection, keys, now, before)


def evict(connection: sa.Connection, *, max_bytes: int, shard: int) -> None:
    """Delete blocks, least recently used first and of a sequence the last first, until the cost is at most `max_bytes`
    or EVICT_BLOCKS are gone."""
    excess = size(connection).cost - max_bytes
    gone = []
    of = _statements(connection)
    for row in sorted(of.oldest(connection, EVICT_BLOCKS), key=lambda row: (row.used_at, -row.number)):
        if excess <= 0:
            break
        gone.append(row)
        excess -= row.size + BLOCK_OVERHEAD
    if gone:
        of.delete(connection, [row.row for row in gone])
        _grow(connection, shard, -sum(row.size for row in gone), -len(gone))


def size(connection: sa.Connection) -> Size:
    """The sums as they were last committed, or changed by this transaction."""
    sums = sa.text("SELECT coalesce(sum(bytes), 0), coalesce(sum(blocks), 0) FROM evidence_size")
    return Size(*map(int, connection.execute(sums).one()))


def _grow(connection: sa.Connection, shard: int, size: int, blocks: int) -> None:
    """Last in a transaction: whoever else adds to this shard waits until it ends."""
    connection.execute(
        sa.text(
            "INSERT INTO evidence_size AS sums (shard, bytes, blocks) VALUES (:shard, :bytes, :blocks) "
            "ON CONFLICT (shard) DO UPDATE SET bytes = sums.bytes + excluded.bytes, "
            "blocks = sums.blocks + excluded.blocks"
        ),
        {"shard": shard, "bytes": size, "blocks": blocks},
    )


def _statements(connection: sa.Connection) -> Statements:
    return sqlite_table if connection.dialect.name == "sqlite" else postgresql_table
