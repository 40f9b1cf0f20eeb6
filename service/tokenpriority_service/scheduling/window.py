"""What an engine has at once: calls, their sizes, and whether there is room for one more.

Knows tokens, classes, seconds and the engine's speed. Knows nothing of queues or of who is waited for.

An engine does not give back what it has begun, so what it has is what an interactive request may have to wait for. It
is given calls of a slice of work each: one to work on and, before it ends, one more, so that the engine is never
without. Bulk work gets no more than that. Interactive work, when it is its turn, gets two calls at once
beside whatever bulk is there. Where urgent work overtakes what the engine was given before, no queue's turns reach bulk
work any more once the engine has it: interactive work then gets no more than leaves bulk its share of the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenpriority_service.engines.engine import Rows
from tokenpriority_service.scheduling.fair_queue import CLASS_WEIGHTS
from tokenpriority_service.scheduling.speed import Speed

if TYPE_CHECKING:
    from tokenpriority_service.scheduling.dispatch import Work


CALLS = 2
"""Calls an engine may have however long their sequences are: one to work on and one more."""

FIRST_SLICE_TOKENS = 2_048
"""Tokens of a call before any speed was measured."""

SLICE_TOKENS = 65_536
"""Most tokens of one call (a longer sequence goes alone), however fast the engine."""

WINDOW_TOKENS = CALLS * SLICE_TOKENS
"""Most tokens of a class an engine has at once, for its memory's sake; one sequence alone may be longer."""

BULK_PART = sum(CLASS_WEIGHTS.values()) / CLASS_WEIGHTS["bulk"]
"""Bulk work is done in this many times what it takes with the engine to itself, or sooner."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of the engine, and the task that takes its answer over."""

    works: list[Work]
    tokens: int
    service_class: str
    queued: float
    """When the first of its works came."""
    began: float
    load: int
    """Tokens the engine had to do when it began, its own included, and those that overtook it since."""
    answer: asyncio.Task[list[Rows | Exception]]
    served: asyncio.Task[None] | None = None
    overtaken: list[Call] = field(default_factory=list)
    """Bulk calls the engine had when this one, of interactive work, began."""
    telling: bool = True
    """Whether the engine did all its load first: what is urgent may have been done before the rest."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How an engine is fed."""

    slice_seconds: float
    """Work of one call, at the measured speed; a longer sequence goes alone."""
    lead_seconds: float
    """How long before it is expected to be done with what it has it gets more bulk work: at least the time an answer
    and the next call take on their way, and what expectations err by."""


SERIAL = Pace(0.03, 0.01)
"""Of an engine that works on one call after the other."""
BATCHING = Pace(0.15, 0.15)
"""Of one that batches over calls: it is slower with less, and never quite done."""


@dataclass(slots=True)
class Window:
    """The calls of one engine whose work is not yet settled; the engine has those without an answer."""

    pace: Pace
    urgent_first: bool
    """Whether in this engine interactive work overtakes bulk work."""
    calls: set[Call] = field(default_factory=set)
    _speed: Speed = field(default_factory=lambda: Speed(FIRST_SLICE_TOKENS))
    _answered: float = 0.0
    """When the engine last answered a call."""
    _bulk_answered: float = 0.0
    """When it last answered one of bulk work."""
    _free: float = 0.0
    """When it is expected to have answered all it has; rather too early than too late."""

    @property
    def load(self) -> int:
        """Tokens the engine has."""
        return sum(call.tokens for call in self._present)

    @property
    def due(self) -> float:
        """When the engine is to get more bulk work."""
        return self._free - self.pace.lead_seconds

    def room(self, service_class: str, tokens: int, now: float) -> int:
        """Tokens of the call that may begin now with a sequence of so many; fewer than those if none may."""
        size = min(self._speed.tokens_in(self.pace.slice_seconds), SLICE_TOKENS)
        present = self._present
        bulk = [call for call in present if call.service_class == "bulk"]
        if service_class == "bulk" and (len(bulk) == CALLS or (present and now < self.due)):
            return 0
        beside = present if service_class == "bulk" else [call for call in present if call not in bulk]
        room = CALLS * size - sum(call.tokens for call in beside)
        if len(beside) < CALLS:
            room = max(room, tokens)
        if beside:
            room = min(room, WINDOW_TOKENS - sum(call.tokens for call in beside))
        room = min(room, max(size, tokens))
        if not (self.urgent_first and bulk and service_class == "interactive"):
            return room
        left = self._left(bulk, now)
        return min(room, max(self._speed.tokens_in(left), tokens)) if left > 0 else 0

    def begin(self, call: Call) -> None:
        """The engine is given a call."""
        if call.service_class == "interactive":
            call.overtaken = [other for other in self._present if other.service_class == "bulk"]
        call.telling = self.pace is SERIAL or not call.overtaken
        self.calls.add(call)
        self._free = max(self._free, call.began) + self._speed.seconds(call.tokens)

    def answered(self, call: Call, now: float) -> float:
        """The engine is done with a call, whatever came of it. The seconds it was busy with it and no call before."""
        seconds = now - max(call.began, self._answered)
        self._answered = now
        if call.service_class == "bulk":
            self._bulk_answered = now
        for other in call.overtaken:
            other.load += call.tokens  # of no use to one that was answered before
        self._free = min(self._free, now + self._speed.seconds(self.load))
        broken = call.answer.cancelled() or call.answer.exception() is not None
        # Errors come at another speed than evidence.
        if call.telling and not broken and not any(isinstance(result, Exception) for result in call.answer.result()):
            self._speed.note(call.load, now - call.began)
        return seconds

    def _left(self, bulk: Sequence[Call], now: float) -> float:
        """Seconds of interactive work the engine may get beside these bulk calls, so that the first of them is answered
        in time: counted from when it came or, if that was later, from the answer to the bulk call before it.
        """
        first = min(bulk, key=lambda call: call.began)
        due = max(first.queued, self._bulk_answered) + BULK_PART * self._speed.expected(first.tokens)
        behind = sum(call.tokens for call in bulk if call is not first)
        return due - max(self._free - self._speed.seconds(behind), now)

    @property
    def _present(self) -> list[Call]:
        return [call for call in self.calls if not call.answer.done()]
