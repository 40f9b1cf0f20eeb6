"""Evidence in this process.

Knows which block was used last. Knows no database.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tokenpriority_service.engines.engine import Rows
from tokenpriority_service.store.blocks import Block, Entry, Wanted, cut, joined


class MemoryStore:
    """An EvidenceStore in this process, bounded in bytes; the least recently used block goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes kept, overhead included; at most `max_bytes`."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._blocks)

    async def find(self, wanted: Sequence[Wanted]) -> list[Rows]:
        """See EvidenceStore."""
        return [self.recall(each) for each in wanted]

    def recall(self, wanted: Wanted) -> Rows:
        """See EvidenceStore."""
        return joined(wanted, self.leading(wanted))

    async def covered(self, wanted: Sequence[Wanted]) -> list[int]:
        """See EvidenceStore."""
        return [each.known(len(self.leading(each, use=False))) for each in wanted]

    async def keep(self, found: Sequence[tuple[Wanted, Rows]]) -> None:
        """See EvidenceStore."""
        self.take(found)

    def block(self, key: bytes, start: int, top20: bool) -> Block | None:
        """A block that covers this, if one is there."""
        block = self._blocks.get(key)
        return block if block is not None and block.covers(start, top20) else None

    def leading(self, wanted: Wanted, *, use: bool = True) -> list[Block]:
        """The blocks known from the first wanted one on, up to the first gap; with `use` they were used last."""
        first = wanted.first
        blocks: list[Block] = []
        for number in range(first, len(wanted.keys)):
            block = self.block(wanted.keys[number], wanted.start(number), wanted.top20)
            if block is None:
                break
            blocks.append(block)
        if use:
            # Last to first, so that of one sequence the end goes first and never leaves a gap before it.
            for key in reversed(wanted.keys[first : first + len(blocks)]):
                self._blocks.move_to_end(key)
        return blocks

    def take(self, found: Sequence[tuple[Wanted, Rows]]) -> list[Entry]:
        """Remember evidence, as `keep` does; what of it was new here."""
        new = []
        for wanted, rows in found:
            for number in reversed(range(wanted.first, len(wanted.keys))):
                key = wanted.keys[number]
                if self.block(key, wanted.start(number), wanted.top20) is None:
                    new.append(Entry(key, number, cut(wanted, rows, number)))
                    self._put(key, new[-1].block)
                self._blocks.move_to_end(key)
        self._evict()
        return new

    def add(self, wanted: Wanted, blocks: Sequence[Block]) -> None:
        """Remember blocks found elsewhere, from the first wanted one on, as used last."""
        for number, block in reversed(list(enumerate(blocks, wanted.first))):
            key = wanted.keys[number]
            if self.block(key, block.start, block.top20) is None:
                self._put(key, block)
            self._blocks.move_to_end(key)
        self._evict()

    def _put(self, key: bytes, block: Block) -> None:
        old = self._blocks.get(key)
        self._blocks[key] = block
        self._bytes += block.cost - (old.cost if old is not None else 0)

    def _evict(self) -> None:
        while self._bytes > self._max_bytes:
            _, gone = self._blocks.popitem(last=False)
            self._bytes -= gone.cost
