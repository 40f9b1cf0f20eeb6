"""What one sequence needs of one model: what the store knows of it, and work for the rest.

Knows how the two are put together. Knows nothing of queues, quotas or requests.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import numpy as np

from tokenpriority.errors import ApiError, NotStored
from tokenpriority_service.engines.engine import Rows
from tokenpriority_service.models import Model
from tokenpriority_service.requests.item import Sequence
from tokenpriority_service.scheduling.dispatch import Work
from tokenpriority_service.store import Wanted


@dataclass(frozen=True, slots=True)
class Known:
    """The evidence of one sequence under one model, float32 [6 or 7, T], or the error it met."""

    rows: Rows | ApiError
    cached: bool = False
    """Whether all of it came from the store."""


@dataclass(slots=True)
class Plan:
    """What one sequence needs of one model: a known beginning, and work to wait for if that is not all."""

    model: Model
    sequence: Sequence
    wanted: Wanted
    known: Rows
    """[6 or 7, n]: what the store knows, see EvidenceStore.find."""
    work: Work | None = None

    @property
    def known_tokens(self) -> int:
        """Leading tokens that need no engine."""
        return len(self.known[0])

    @property
    def rest(self) -> Wanted:
        """What the store does not know."""
        return replace(self.wanted, score_from=max(self.wanted.score_from, self.known_tokens))

    @property
    def missing(self) -> bool:
        """Whether an engine is needed."""
        return self.rest.score_from < self.wanted.length

    @property
    def place(self) -> tuple[str, bytes]:
        """The work this needs: by model too, since two names may stand for equal weights."""
        return self.model.name, self.wanted.key

    def answer(self) -> Known:
        """The store's part and the engine's, put together. Work shared with others may know more than was asked for."""
        if self.known_tokens == self.wanted.length:
            return Known(self.known, cached=True)
        rows = np.full((self.wanted.rows, self.wanted.length), np.nan, np.float32)
        rows[:, : self.known_tokens] = self.known
        if not self.missing:  # nothing was wanted of it
            return Known(rows)
        if self.work is None:
            stored = f"{self.known_tokens} of {self.wanted.length} tokens are stored"
            return Known(NotStored(f"{stored} under {self.model.name!r}"))
        result = self.work.done.result()
        if isinstance(result, ApiError):
            return Known(result)
        start = self.rest.score_from
        rows[:, start:] = result[: self.wanted.rows, start:]
        return Known(rows)


@dataclass(slots=True)
class New:
    """Work that nobody has begun, for one plan or several of the same content, as widely as all want it."""

    plan: Plan
    wanted: Wanted
    price: int
    """Tokens the team is charged: those the store does not know."""
    work: Work | None = None

    @property
    def undone(self) -> bool:
        """Whether it was not begun, failed, or was given up before an engine began it."""
        done = self.work.done if self.work is not None else None
        return done is None or (done.done() and isinstance(done.result(), ApiError))


def unbegun(missing: Many[Plan]) -> dict[tuple[str, bytes], New]:
    """The work that nobody has begun, by its place: the same sequence twice in one request is there once."""
    new: dict[tuple[str, bytes], New] = {}
    for plan in missing:
        if plan.work is None:
            price = plan.wanted.length - plan.known_tokens
            each = new.setdefault(plan.place, New(plan, plan.rest, price))
            each.wanted, each.price = plan.rest.union(each.wanted), max(price, each.price)
    return new
