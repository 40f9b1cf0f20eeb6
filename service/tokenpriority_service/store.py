"""Evidence that has been computed before, by content.

Knows keys, arrays and bytes. Knows nothing of models, methods or requests: a key covers the model's fingerprint and
the token ids, so equal keys mean equal evidence.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tokenpriority_service.engines.engine import Ids, Rows

ENTRY_OVERHEAD = 300
"""Bytes an entry costs beyond its evidence: key, array header, dictionary slot; rounded up."""


def content_key(fingerprint: str, token_ids: Ids) -> bytes:
    """blake2b-256 of a model's fingerprint and the token ids as little-endian u4: 32 bytes."""
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=32)
    digest.update(b"\0")
    digest.update(np.ascontiguousarray(token_ids, "<u4").tobytes())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Evidence looked for: of which content, and from which index on."""

    key: bytes
    score_from: int


class EvidenceStore(Protocol):
    """Where evidence is kept between requests. Calls may wait (a database) and never raise for a miss."""

    async def find(self, wanted: Sequence[Wanted]) -> list[Rows | None]:
        """Evidence of each in order: a [6, T] float32 array, NaN before `score_from`, or None if it is not known from
        there on. A hit is as good as the engine: the same bytes."""

    async def keep(self, found: Sequence[tuple[Wanted, Rows]]) -> None:
        """Remember [6, T] float32 arrays; a wider one (smaller `score_from`) replaces a narrower one, never the other
        way round."""


@dataclass(frozen=True, slots=True)
class _Entry:
    score_from: int
    tail: Rows
    """[6, T - score_from]: what stands before `score_from` is NaN and is not kept."""

    @property
    def cost(self) -> int:
        return self.tail.nbytes + ENTRY_OVERHEAD


class MemoryStore:
    """An EvidenceStore in this process, bounded in bytes; the least recently used entry goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes kept, overhead included; at most `max_bytes`."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    async def find(self, wanted: Sequence[Wanted]) -> list[Rows | None]:
        """See EvidenceStore."""
        return [self._find(each) for each in wanted]

    async def keep(self, found: Sequence[tuple[Wanted, Rows]]) -> None:
        """See EvidenceStore."""
        for wanted, rows in found:
            self._keep(wanted, rows)

    def _find(self, wanted: Wanted) -> Rows | None:
        entry = self._entries.get(wanted.key)
        if entry is None or entry.score_from > wanted.score_from:
            return None
        self._entries.move_to_end(wanted.key)
        rows = np.full((len(entry.tail), entry.score_from + entry.tail.shape[1]), np.nan, np.float32)
        rows[:, wanted.score_from :] = entry.tail[:, wanted.score_from - entry.score_from :]
        return rows

    def _keep(self, wanted: Wanted, rows: Rows) -> None:
        old = self._entries.get(wanted.key)
        if old is not None and old.score_from <= wanted.score_from:
            self._entries.move_to_end(wanted.key)
            return
        # A copy: the engine's array may be a view that holds a whole batch alive.
        entry = _Entry(wanted.score_from, rows[:, wanted.score_from :].copy())
        if entry.cost > self._max_bytes:
            return
        if old is not None:
            self._bytes -= old.cost
        self._entries[wanted.key] = entry
        self._entries.move_to_end(wanted.key)
        self._bytes += entry.cost
        while self._bytes > self._max_bytes:
            _, gone = self._entries.popitem(last=False)
            self._bytes -= gone.cost
