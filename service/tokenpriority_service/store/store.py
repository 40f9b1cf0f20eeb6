"""What an evidence store is.

Knows the calls. Knows nothing of how evidence is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tokenpriority_service.engines.engine import Rows
from tokenpriority_service.store.blocks import Wanted


class EvidenceStore(Protocol):
    """Where evidence is kept between requests. Calls may wait (a database) and never raise for a miss, nor because
    what they keep evidence in does not work: then less is known."""

    async def find(self, wanted: Sequence[Wanted]) -> list[Rows]:
        """What is known of each without a gap from its `score_from` on: a float32 array [6, n], or [7, n] with `top20`,
        NaN before `score_from`. n = T is all of it, score_from < n < T a leading part, n = 0 nothing. What is known is
        as good as the engine: the same bytes."""

    def recall(self, wanted: Wanted) -> Rows:
        """`find` in this process alone, at once."""

    async def covered(self, wanted: Sequence[Wanted]) -> list[int]:
        """The n of `find` for each, without reading evidence; asking does not count as use."""

    async def keep(self, found: Sequence[tuple[Wanted, Rows]]) -> None:
        """Remember float32 arrays [6, T], or [7, T] with `top20`. What covers more replaces what it covers, never the
        other way round; of two that do not cover each other at least the newer stays."""


class StoreWatch(Protocol):
    """Who is told what a store does."""

    def stored(self, hits_blocks: int, missed_blocks: int) -> None:
        """A `find` wanted these blocks: so many were known, so many were not."""

    def store_failed(self, what: str) -> None:
        """The database did not serve a `find` or a `keep`."""
