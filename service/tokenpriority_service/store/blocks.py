"""Evidence in blocks, each under a key of its content.

Knows keys, blocks and how evidence is cut into them and joined again. Knows nothing of where blocks are kept.

The evidence of a token depends on the tokens up to it alone, so it is kept in blocks of `BLOCK_TOKENS` tokens, each
under a key of everything up to its end: the fingerprint and the token ids. (Where it depends on the sequence's length
too, so does the fingerprint: `EngineInfo.content_fingerprint`.) Sequences with a common beginning (turns of one
conversation, completions of one prompt) share its blocks, and of a sequence never seen the beginning may be known. A
block is a key and some bytes, so any key-value table can hold it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tokenpriority.evidence import OPTIONAL_SIGNALS, SIGNALS
from tokenpriority_service.engines.engine import Ids, Rows

BLOCK_TOKENS = 64
"""Tokens of a block; only a sequence's last block may hold fewer. Databases outlive the program: to change this, or the
order of the signals, change what `content_keys` begins with too."""

BLOCK_OVERHEAD = 300
"""Bytes a block costs beyond its evidence: in memory key, dictionary slot, list node and object headers, in a table the
key, its index and the unused rest of a page; rounded up."""


def content_keys(fingerprint: str, token_ids: Ids, salt: str = "") -> tuple[bytes, ...]:
    """One key of 32 bytes for each block of the ids, first to last; the last one is of the whole.

    blake2b-256 of a `content_fingerprint` and the token ids, as little-endian u4, up to the end of the block. With a
    `salt` the digest is keyed by it: contents under different salts have nothing in common.
    """
    secret = hashlib.blake2b(salt.encode(), digest_size=32).digest() if salt else b""
    digest = hashlib.blake2b(fingerprint.encode() + b"\0", digest_size=32, key=secret)
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

    @property
    def first(self) -> int:
        """Number of the block that holds `score_from`."""
        return self.score_from // BLOCK_TOKENS

    def start(self, number: int) -> int:
        """Index in block `number` of the first token wanted of it."""
        return max(0, self.score_from - number * BLOCK_TOKENS)

    def covers(self, other: Wanted) -> bool:
        """Whether this evidence of the same content answers the other wish too."""
        return self.score_from <= other.score_from and self.top20 >= other.top20

    def union(self, other: Wanted) -> Wanted:
        """What covers both, of the same content."""
        return replace(self, score_from=min(self.score_from, other.score_from), top20=self.top20 or other.top20)

    def known(self, blocks: int) -> int:
        """The n of EvidenceStore.find if so many blocks are known from the first on."""
        return min((self.first + blocks) * BLOCK_TOKENS, self.length) if blocks else 0


class Block(NamedTuple):  # many thousands are made in a second; a frozen dataclass takes five times as long
    """The evidence of a block, from a token on."""

    start: int
    """Index in the block of the first token whose evidence is there."""
    top20: bool
    evidence: bytes
    """float32 [6 or 7, tokens - start], row by row."""

    @property
    def cost(self) -> int:
        """Bytes it takes where it is kept."""
        return len(self.evidence) + BLOCK_OVERHEAD

    def covers(self, start: int, top20: bool) -> bool:
        """Whether the evidence from index `start` on is there."""
        return self.start <= start and self.top20 >= top20


class Entry(NamedTuple):
    """A block with its place."""

    key: bytes
    number: int
    """Its number in the sequence; the same key always has the same."""
    block: Block


def cut(wanted: Wanted, rows: Rows, number: int) -> Block:
    """Block `number` of evidence [6 or 7, T]; bytes, not a view: the engine's array may hold a whole batch alive."""
    start = wanted.start(number)
    columns = slice(number * BLOCK_TOKENS + start, (number + 1) * BLOCK_TOKENS)
    return Block(start, wanted.top20, rows[:, columns].tobytes())


def joined(wanted: Wanted, blocks: Sequence[Block]) -> Rows:
    """[6 or 7, n]: the evidence of consecutive blocks, the first of which holds `score_from`; NaN before that."""
    known = wanted.known(len(blocks))
    rows = np.full((wanted.rows, known), np.nan, np.float32)
    # All between the first and the last are whole, so they are copied at once.
    size = 4 * wanted.rows * BLOCK_TOKENS
    whole = b"".join([block.evidence[:size] for block in blocks[1:-1]])
    middle = np.frombuffer(whole, np.float32).reshape(-1, wanted.rows, BLOCK_TOKENS)
    start = (wanted.first + 1) * BLOCK_TOKENS
    end = start + len(middle) * BLOCK_TOKENS
    rows[:, start:end] = middle.swapaxes(0, 1).reshape(wanted.rows, -1)
    for number in {0, len(blocks) - 1} if blocks else ():
        start = (wanted.first + number) * BLOCK_TOKENS + blocks[number].start
        end = min((wanted.first + number + 1) * BLOCK_TOKENS, known)
        evidence = np.frombuffer(blocks[number].evidence, np.float32).reshape(-1, end - start)
        rows[:, start:end] = evidence[: wanted.rows]
    rows[:, : wanted.score_from] = np.nan
    return rows
