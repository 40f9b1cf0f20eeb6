"""Evidence stores under test: contents, the evidence that belongs to them, and stores called without `await`.

The evidence of a block is a function of its key, so whatever a store returns, or a table holds, can be told right from
wrong by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import sqlalchemy as sa

from tokenpriority_service.database.database import Database
from tokenpriority_service.database.tables import evidence, evidence_size
from tokenpriority_service.store import BLOCK_TOKENS, EvidenceStore, LayeredStore, Wanted, content_keys

B = BLOCK_TOKENS
T = TypeVar("T")


def ids(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 1000, length).astype(np.uint32)


def wanted(token_ids: Any, score_from: int = 1, top20: bool = False, fingerprint: str = "f") -> Wanted:
    return Wanted(content_keys(fingerprint, token_ids), len(token_ids), score_from, top20)


def block_truth(key: bytes) -> Any:
    """[7, B]: the evidence of a whole block; bits of any pattern but NaN."""
    bits = np.frombuffer(hashlib.shake_256(key).digest(4 * 7 * B), np.uint32) & 0xBF7FFFFF
    return bits.view(np.float32).reshape(7, B)


def truth(wish: Wanted, length: int | None = None) -> Any:
    """Evidence of a content, NaN before score_from."""
    rows = np.concatenate([block_truth(key) for key in wish.keys], axis=1)
    rows = rows[: wish.rows, : wish.length if length is None else length].copy()
    rows[:, : wish.score_from] = np.nan
    return rows


class Watch:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.hits = self.missed = 0
        self.failures: list[str] = []

    def stored(self, hits_blocks: int, missed_blocks: int) -> None:
        self.hits += hits_blocks
        self.missed += missed_blocks

    def store_failed(self, what: str) -> None:
        self.failures.append(what)


class Held(AbstractContextManager["Held"]):
    """A store in an event loop of its own, which runs while it is called."""

    def __init__(self, store: EvidenceStore) -> None:
        self.store: Any = store
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        if isinstance(self.store, LayeredStore):
            self.run(self.store.start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(self.store, LayeredStore):
            self.run(self.store.close())
        self._loop.close()

    def run(self, call: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await call

        return self._loop.run(awaited())

    def keep(self, *wishes: Wanted) -> None:
        """Keep what is true of contents, and wait until it is written."""
        self.run(self.store.keep([(wish, truth(wish)) for wish in wishes]))
        self.settle()

    def settle(self) -> None:
        """Wait until nothing waits to be written or evicted."""

        async def settled() -> None:
            writer = getattr(self.store, "_writer", None)
            deadline = time.monotonic() + 60
            while writer is not None and (writer._waiting or writer._evicting):
                assert time.monotonic() < deadline, "the writer does not get done"
                await asyncio.sleep(0.001)

        self.run(settled())

    def find(self, wish: Wanted) -> Any:
        return self.run(self.store.find([wish]))[0]

    def right(self, wish: Wanted) -> int:
        """How many leading tokens are known; what is known must be right to the byte."""
        rows = self.find(wish)
        assert rows.tobytes() == truth(wish, rows.shape[1]).tobytes()
        assert rows.shape[0] == wish.rows
        assert rows.shape[1] == 0 or wish.score_from < rows.shape[1] <= wish.length
        return int(rows.shape[1])

    def known(self, wish: Wanted) -> int:
        """The same where nobody else writes: then `covered` must have said it beforehand."""
        (covered,) = self.run(self.store.covered([wish]))
        assert covered == self.right(wish)
        return int(covered)


def layered(database: Database, *, memory_bytes: int = 1 << 26, max_bytes: int = 1 << 30, watch: Any = None) -> Held:
    """A layered store, to be entered."""
    return Held(LayeredStore(database, memory_bytes=memory_bytes, max_bytes=max_bytes, watch=watch or Watch()))


def rows_of(database: Database) -> dict[tuple[bytes, int, int], bytes]:
    """All of the table, each row of which must be right to the byte and counted in the sums."""
    columns = (evidence.c.key, evidence.c.start, evidence.c.top20, evidence.c.data)
    sums = sa.select(sa.func.sum(evidence_size.c.bytes), sa.func.sum(evidence_size.c.blocks))

    def read(connection: sa.Connection) -> tuple[Any, Any]:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        return connection.execute(sa.select(*columns)).all(), connection.execute(sums).one()

    rows, (size, blocks) = database.read_now(read)
    for key, start, top20, data in rows:
        signals = 7 if top20 else 6
        end = start + len(data) // (4 * signals)
        assert data == block_truth(key)[:signals, start:end].tobytes()
    assert int(size or 0) == sum(len(row.data) for row in rows)
    assert int(blocks or 0) == len(rows)
    return {(row.key, row.start, row.top20): row.data for row in rows}
