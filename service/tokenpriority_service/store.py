"""Evidence that has been computed before, by content.

Knows keys, blocks of evidence and bytes. Knows nothing of models, methods or requests.

The evidence of a token depends on the tokens up to it alone, so it is kept in blocks of `BLOCK_TOKENS` tokens, each
under a key of everything up to its end: the model's fingerprint and the token ids. Sequences with a common beginning
(turns of one conversation, completions of one prompt) share its blocks, and of a sequence never seen the beginning may
be known. A block is a key and some bytes, so any key-value table can hold it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from tokenpriority.evidence import OPTIONAL_SIGNALS, SIGNALS
from tokenpriority_service.engines.engine import Ids, Rows

BLOCK_TOKENS = 64
"""Tokens of a block; only a sequence's last block may hold fewer."""

BLOCK_OVERHEAD = 300
"""Bytes a block costs beyond its evidence: key, dictionary slot, list node, object headers; rounded up."""


def content_keys(fingerprint: str, token_ids: Ids) -> tuple[bytes, ...]:
    """One key of 32 bytes for each block of the ids, first to last; the last one is of the whole.

    blake2b-256 of a model's fingerprint and the token ids, as little-endian u4, up to the end of the block.
    """
    digest = hashlib.blake2b(fingerprint.encode() + b"\0", digest_size=32)
    data = np.ascontiguousarray(token_ids, "<u4").tobytes()
    keys = []
    for start in range(0, len(data), 4 * BLOCK_TOKENS):
        digest.update(data[start : start + 4 * BLOCK_TOKENS])
        keys.append(digest.copy().digest())
    return tuple(keys)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Evidence looked for, or kept: of which content, from which index on, and whether with `entropy_top20`."""

    keys: tuple[bytes, ...]
    """`content_keys` of all token ids, whatever `score_from` is."""
    length: int
    """The number of token ids, T."""
    score_from: int
    top20: bool = False

    @property
    def key(self) -> bytes:
        """The key of the whole content."""
        return self.keys[-1]

    @property
    def rows(self) -> int:
        """Rows of its evidence: 6, or 7."""
        return len(SIGNALS) + (len(OPTIONAL_SIGNALS) if self.top20 else 0)

    def covers(self, other: Wanted) -> bool:
        """Whether this evidence of the same content answers the other wish too."""
        return self.score_from <= other.score_from and self.top20 >= other.top20

    def union(self, other: Wanted) -> Wanted:
        """What covers both, of the same content."""
        return replace(self, score_from=min(self.score_from, other.score_from), top20=self.top20 or other.top20)


class EvidenceStore(Protocol):
    """Where evidence is kept between requests. Calls may wait (a database) and never raise for a miss."""

    async def find(self, wanted: Sequence[Wanted]) -> list[Rows]:
        """What is known of each without a gap from its `score_from` on: a float32 array [6, n], or [7, n] with `top20`,
        NaN before `score_from`. n = T is all of it, score_from < n < T a leading part, n = 0 nothing. What is known is
        as good as the engine: the same bytes."""

    async def keep(self, found: Sequence[tuple[Wanted, Rows]]) -> None:
        """Remember float32 arrays [6, T], or [7, T] with `top20`. What covers more replaces what it covers, never the
        other way round; of two that do not cover each other the newer stays."""


class _Block(NamedTuple):  # many thousands are made in a second; a frozen dataclass takes five times as long
    start: int
    """Index in the block of the first token whose evidence is there."""
    top20: bool
    evidence: bytes
    """float32 [6 or 7, tokens - start], row by row."""

    @property
    def cost(self) -> int:
        return len(self.evidence) + BLOCK_OVERHEAD

    def covers(self, start: int, top20: bool) -> bool:
        return self.start <= start and self.top20 >= top20


class MemoryStore:
    """An EvidenceStore in this process, bounded in bytes; the least recently used block goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()
        self._bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes kept, overhead included; at most `max_bytes`."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._blocks)

    async def find(self, wanted: Sequence[Wanted]) -> list[Rows]:
        """See EvidenceStore."""
        return [self._find(each) for each in wanted]

    async def keep(self, found: Sequence[tuple[Wanted, Rows]]) -> None:
        """See EvidenceStore."""
        for wanted, rows in found:
            self._keep(wanted, rows)
        while self._bytes > self._max_bytes:
            _, gone = self._blocks.popitem(last=False)
            self._bytes -= gone.cost

    def _find(self, wanted: Wanted) -> Rows:
        first = wanted.score_from // BLOCK_TOKENS
        blocks: list[_Block] = []
        for number in range(first, len(wanted.keys)):
            block = self._blocks.get(wanted.keys[number])
            if block is None or not block.covers(_start(wanted, number), wanted.top20):
                break
            blocks.append(block)
        # Last to first, so that of one sequence the end goes first and never leaves a gap before it.
        for key in reversed(wanted.keys[first : first + len(blocks)]):
            self._blocks.move_to_end(key)
        return _joined(wanted, blocks)

    def _keep(self, wanted: Wanted, rows: Rows) -> None:
        for number in reversed(range(wanted.score_from // BLOCK_TOKENS, len(wanted.keys))):
            key, start = wanted.keys[number], _start(wanted, number)
            old = self._blocks.get(key)
            if old is None or not old.covers(start, wanted.top20):
                columns = slice(number * BLOCK_TOKENS + start, (number + 1) * BLOCK_TOKENS)
                # Bytes, not a view: the engine's array may hold a whole batch alive.
                block = _Block(start, wanted.top20, rows[:, columns].tobytes())
                self._blocks[key] = block
                self._bytes += block.cost - (old.cost if old is not None else 0)
            self._blocks.move_to_end(key)


def _start(wanted: Wanted, number: int) -> int:
    """Index in block `number` of the first token wanted of it."""
    return max(0, wanted.score_from - number * BLOCK_TOKENS)


def _joined(wanted: Wanted, blocks: Sequence[_Block]) -> Rows:
    """[6 or 7, n]: the evidence of consecutive blocks, the first of which holds `score_from`; NaN before that."""
    first = wanted.score_from // BLOCK_TOKENS
    known = min((first + len(blocks)) * BLOCK_TOKENS, wanted.length) if blocks else 0
    rows = np.full((wanted.rows, known), np.nan, np.float32)
    # All between the first and the last are whole, so they are copied at once.
    size = 4 * wanted.rows * BLOCK_TOKENS
    whole = b"".join([block.evidence[:size] for block in blocks[1:-1]])
    middle = np.frombuffer(whole, np.float32).reshape(-1, wanted.rows, BLOCK_TOKENS)
    start = (first + 1) * BLOCK_TOKENS
    end = start + len(middle) * BLOCK_TOKENS
    rows[:, start:end] = middle.swapaxes(0, 1).reshape(wanted.rows, -1)
    for number in {0, len(blocks) - 1} if blocks else ():
        start = (first + number) * BLOCK_TOKENS + blocks[number].start
        end = min((first + number + 1) * BLOCK_TOKENS, known)
        evidence = np.frombuffer(blocks[number].evidence, np.float32).reshape(-1, end - start)
        rows[:, start:end] = evidence[: wanted.rows]
    rows[:, : wanted.score_from] = np.nan
    return rows
