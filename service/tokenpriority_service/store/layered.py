"""Evidence in this process, and behind it in a database.

Knows in which order the two are asked. The database may be slow, full or away: then what memory knows is all there is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tokenpriority.errors import Unavailable
from tokenpriority_service.database.database import Database
from tokenpriority_service.engines.engine import Rows
from tokenpriority_service.store import table
from tokenpriority_service.store.blocks import Block, Wanted, joined
from tokenpriority_service.store.health import Health
from tokenpriority_service.store.memory import MemoryStore
from tokenpriority_service.store.store import StoreWatch
from tokenpriority_service.store.table import Found
from tokenpriority_service.store.writer import Writer

FIND_SECONDS = 5.0
"""How long a request waits for the database before it goes on without."""

logger = logging.getLogger(__name__)


class LayeredStore:
    """An EvidenceStore of two layers, each bounded in bytes, the least recently used going first.

    A block is in memory as soon as it is kept, and a moment later in the database. `max_bytes` 0 uses memory alone, and
    `memory_bytes` 0 the database alone. Call `start` before use, in the event loop it is used in.
    """

    def __init__(self, database: Database, *, memory_bytes: int, max_bytes: int, watch: StoreWatch) -> None:
        self._database = database
        self._memory = MemoryStore(memory_bytes)
        self._has_table = max_bytes > 0
        self._watch = watch
        self._health = Health(watch)
        self._writer = Writer(database, max_bytes=max_bytes, health=self._health)

    @property
    def memory_bytes(self) -> int:
        """Bytes kept in this process, overhead included."""
        return self._memory.used_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes kept in the database, overhead included, as this process saw it last (at most a minute ago)."""
        return self._writer.size.cost

    @property
    def blocks(self) -> int:
        """Blocks kept in the database, likewise."""
        return self._writer.size.blocks

    async def start(self) -> None:
        """Begin to write; never raises because the database does not work."""
        await self._writer.start()

    async def close(self) -> None:
        """Write what waits (for at most `writer.CLOSE_SECONDS`), and stop."""
        await self._writer.close()

    async def find(self, wanted: Sequence[Wanted]) -> list[Rows]:
        """See EvidenceStore."""
        known = [self._memory.leading(each) for each in wanted]
        found = await self._read(wanted, known)
        rows = []
        for each, blocks in zip(wanted, known, strict=True):
            if more := self._following(each, len(blocks), found):
                blocks += more
                self._memory.add(each, blocks)
            self._writer.used(each.keys[each.first : each.first + len(blocks)])
            rows.append(joined(each, blocks))
        hits = sum(map(len, known))
        self._watch.stored(hits, sum(len(each.keys) - each.first for each in wanted) - hits)
        return rows

    def recall(self, wanted: Wanted) -> Rows:
        """See EvidenceStore."""
        return self._memory.recall(wanted)

    async def covered(self, wanted: Sequence[Wanted]) -> list[int]:
        """See EvidenceStore."""
        known = [self._memory.leading(each, use=False) for each in wanted]
        found = await self._read(wanted, known, evidence=False)
        both = zip(wanted, known, strict=True)
        return [each.known(len(blocks) + len(self._following(each, len(blocks), found))) for each, blocks in both]

    async def keep(self, found: Sequence[tuple[Wanted, Rows]]) -> None:
        """See EvidenceStore. Waits while too much waits to be written."""
        await self._writer.put(self._memory.take(found))

    async def _read(
        self, wanted: Sequence[Wanted], known: Sequence[Sequence[Block]], *, evidence: bool = True
    ) -> Found:
        """What the table has of the blocks that follow those known; nothing if it cannot be read."""
        both = zip(wanted, known, strict=True)
        missing = list(dict.fromkeys(key for each, blocks in both for key in each.keys[each.first + len(blocks) :]))
        if not missing or not self._has_table:
            return {}
        if not self._health.usable("find"):
            self._health.lost("find")
            return {}
        try:
            async with asyncio.timeout(FIND_SECONDS):
                found = await self._database.read(lambda connection: table.read(connection, missing, evidence=evidence))
        except (Unavailable, TimeoutError) as error:
            self._health.failed("find", error)
            return {}
        self._health.worked("find")
        return found

    def _following(self, wanted: Wanted, known: int, found: Found) -> list[Block]:
        """The blocks after the first `known` ones, up to the first gap."""
        blocks = []
        for number in range(wanted.first + known, len(wanted.keys)):
            key, start = wanted.keys[number], wanted.start(number)
            there = (block for block in found.get(key, ()) if block.covers(start, wanted.top20))
            block = next(there, None) or self._memory.block(key, start, wanted.top20)
            if block is None:
                break
            blocks.append(block)
        return blocks
