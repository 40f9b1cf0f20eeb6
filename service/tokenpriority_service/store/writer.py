"""What is written to the table: one task that writes for all.

Knows what waits to be written, in which portions, and when old blocks have to go. One writer: SQLite takes no more, and
blocks of several requests share a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

import sqlalchemy as sa

from tokenpriority.errors import Unavailable
from tokenpriority_service.database.database import Database
from tokenpriority_service.store import table
from tokenpriority_service.store.blocks import Entry
from tokenpriority_service.store.health import Health
from tokenpriority_service.store.table import Size

BATCH_BLOCKS = 1024
"""Most blocks of one transaction: other writers wait meanwhile."""
WAITING_BYTES = 1 << 26
"""Most bytes that wait to be written; who comes with more waits too."""
ROOM_SECONDS = 5.0
"""How long they wait before what they brought is given up."""
TOUCH_SECONDS = 60.0
"""How exactly the table knows when a block was used."""
TOUCHED_KEYS = 65_536
"""Most keys remembered as used; more are not, and may be evicted a little early."""
CLOSE_SECONDS = 10.0
"""How long closing may take to write what waits; the rest is given up."""
KEPT_SHARE = 0.95
"""Eviction goes on until the table is down to this share of its bound."""
SHARDS = 16
"""Rows that the sums over the table are spread over."""

logger = logging.getLogger(__name__)


class Writer:
    """Writes blocks, and when they were used, to a table of at most `max_bytes`; it may exceed them by a transaction.

    All methods are called in one event loop.
    """

    def __init__(self, database: Database, *, max_bytes: int, health: Health) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self._health = health
        self._shard = random.randrange(SHARDS)
        self._waiting: dict[tuple[bytes, int, bool], Entry] = {}
        self._waiting_bytes = 0
        self._used: dict[bytes, None] = {}
        self._touched_at = time.monotonic()
        self._evicting = False
        self._closing = False
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.size = Size(0, 0)
        """Of the table, as this process saw it last."""

    async def start(self) -> None:
        """Begin to write."""
        await self._look()
        self._wake.set()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what waits, for at most CLOSE_SECONDS, and stop."""
        if self._task is None:
            return
        self._closing = True
        self._wake.set()
        await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting:
            self._health.lost("keep")

    async def put(self, entries: Sequence[Entry]) -> None:
        """Have blocks written; returns when they wait to be."""
        if not entries or not self._max_bytes:
            return
        size = sum(len(entry.block.evidence) for entry in entries)
        if not self._health.usable("keep") or not await self._room(size):
            self._health.lost("keep")
            return
        for entry in entries:
            place = entry.key, entry.block.start, entry.block.top20
            if place not in self._waiting:
                self._waiting[place] = entry
                self._waiting_bytes += len(entry.block.evidence)
        self._wake.set()

    def used(self, keys: Iterable[bytes]) -> None:
        """Blocks were used now."""
        self._used.update(dict.fromkeys(islice(keys, max(0, TOUCHED_KEYS - len(self._used)))))

    async def _room(self, size: int) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROOM_SECONDS):
                while self._waiting and self._waiting_bytes + size > WAITING_BYTES:
                    self._written.clear()
                    await self._written.wait()
                return True
        return False

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting and not self._evicting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TOUCH_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
            await self._insert()
            await self._evict()
            if time.monotonic() - self._touched_at >= TOUCH_SECONDS:
                await self._touch()
        await self._touch()

    async def _insert(self) -> None:
        batch = dict(islice(self._waiting.items(), BATCH_BLOCKS))
        if not batch:
            return
        entries = list(batch.values())
        error = await self._write(
            lambda c: table.insert(c, entries, shard=self._shard, now=time.time()), needs_room=True
        )
        if error is None:
            self._health.worked("keep")
        else:  # as likely as not the rest would fail too, each after a wait
            self._health.failed("keep", error)
            batch = dict(self._waiting)
        for place, entry in batch.items():
            del self._waiting[place]
            self._waiting_bytes -= len(entry.block.evidence)
        self._written.set()

    async def _evict(self) -> None:
        before, kept = self.size, int(KEPT_SHARE * self._max_bytes)
        self._evicting = before.cost > (kept if self._evicting else self._max_bytes)
        if self._evicting:
            error = await self._write(lambda c: table.evict(c, max_bytes=kept, shard=self._shard))
            if error is not None or self.size == before:  # others hold the rows: later
                self._evicting = False

    async def _touch(self) -> None:
        keys, self._used = sorted(self._used), {}
        now = time.time()
        self._touched_at = time.monotonic()
        for first in range(0, len(keys), BATCH_BLOCKS):
            part = keys[first : first + BATCH_BLOCKS]
            if await self._write(partial(table.touch, keys=part, now=now, before=now - TOUCH_SECONDS)) is not None:
                break
        await self._look()

    async def _look(self) -> None:
        """See how large the table is: other replicas write too."""
        with contextlib.suppress(Unavailable):
            self.size = await self._database.read(table.size)

    async def _write(self, work: Callable[[sa.Connection], None], *, needs_room: bool = False) -> Exception | None:
        """Do it in a transaction; the error if it could not be done."""

        def and_sum(connection: sa.Connection) -> Size:
            work(connection)
            return table.size(connection)

        try:
            if needs_room and not self._database.has_room:
                return Unavailable("its disk is nearly full")
            self.size = await self._database.write(and_sum)
        except Unavailable as error:
            return error
        except Exception as error:  # a bug must not end the writer
            logger.exception("the store could not write")
            return error
        return None
