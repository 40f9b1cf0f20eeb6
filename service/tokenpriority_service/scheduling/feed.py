"""What feeds one engine: the queue of its work, handed over in calls of which several run at once.

Knows whose work is next, how much an engine is given at once and what becomes of work when it fails. Knows nothing of
who waits for it. All models on one engine (a base and its adapters) have one feed: shares are of the engine, under
however many names it is asked, and one call may hold work of several.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from tokenpriority.errors import ApiError, InternalError, Unavailable
from tokenpriority_service.engines.engine import RETRY_SECONDS, Engine, Rows
from tokenpriority_service.scheduling.admission import Admission
from tokenpriority_service.scheduling.fair_queue import FairQueue, Flow
from tokenpriority_service.scheduling.outcome import counted, outcomes
from tokenpriority_service.scheduling.window import BATCHING, SERIAL, Call, Window
from tokenpriority_service.store import EvidenceStore

if TYPE_CHECKING:
    from tokenpriority_service.scheduling.dispatch import Work

WATCH_SECONDS = 1.0
"""How often an engine with work is asked whether it can still score."""

logger = logging.getLogger(__name__)


class Watch(Protocol):
    """Who is told how the work goes."""

    def waited(self, model: str, service_class: str, seconds: float) -> None:
        """A sequence was queued so long before an engine began with it."""

    def called(self, model: str, tokens: int, sequences: int, seconds: float) -> None:
        """An engine answered what a call held for a model; `seconds` add up to the time it was busy."""


class Feed:
    """The queue in front of one engine."""

    def __init__(
        self,
        engine: Engine,
        store: EvidenceStore,
        admission: Admission,
        watch: Watch,
        *,
        name: str,
        queue: Callable[[], FairQueue[Work]] = FairQueue,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.pending: dict[bytes, Work] = {}
        """Work in progress, by the key of its whole content."""
        self._engine = engine
        self._store = store
        self._admission = admission
        self._watch = watch
        self._name = name
        self._queue = queue()
        self._window = Window(BATCHING if engine.info.batches else SERIAL, engine.info.urgent_first)
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_soon(self._wake.set)
        """Wakes when the engine is to get more bulk work."""
        self._task = asyncio.create_task(self._run())

    def queued(self, model: str) -> Mapping[tuple[str, str], int]:
        """(team, class) -> tokens of a model that wait for the engine."""
        tokens: Counter[tuple[str, str]] = Counter()
        for work in self._queue:
            if work.model == model:
                flow = self._queue.flow(work)
                tokens[flow.team, flow.service_class] += work.tokens
        return tokens

    def push(self, work: Work) -> None:
        """Work for tokens that have been admitted."""
        self.pending[work.wanted.key] = work
        self._queue.push(work, work.flow, work.tokens)
        self._wake.set()

    def hasten(self, work: Work, flow: Flow) -> None:
        """Someone interactive waits for this work: if it waits in the queue as bulk, it stands in their flow from now
        on; it stays the tokens of whom it was.
        """
        waits = work.call is None and not work.done.done()
        if waits and self._queue.flow(work).service_class == "bulk":
            self._queue.move(work, flow)
            self._wake.set()

    def drop(self, work: Work) -> bool:
        """Give up work that nobody waits for where that is still possible. True if that was before an engine began with
        it: nothing was done for its tokens.
        """
        if work.done.done():
            return False
        if work.call is None:
            self._queue.remove(work)
            self._settle(work, Unavailable("the work was given up"))
            self._wake.set()
            return True
        if not any(other.waiters for other in work.call.works):
            work.call.answer.cancel()
            for other in work.call.works:
                self._forget(other)
        return False

    async def close(self) -> None:
        """Stop; whoever still waits gets Unavailable. Idempotent."""
        tasks = [self._task, *(call.served for call in self._window.calls if call.served is not None)]
        for task in tasks:
            task.cancel()
        self._timer.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        error = Unavailable("the work was given up: the server is shutting down", retry_after=RETRY_SECONDS)
        for call in self._window.calls:
            call.answer.cancel()
            for work in call.works:
                self._settle(work, error)
        self._window.calls.clear()
        self._fail_queue(error)

    async def _run(self) -> None:
        while True:
            watching = asyncio.timeout(WATCH_SECONDS if self._window.calls else None)
            with contextlib.suppress(TimeoutError):
                async with watching:
                    await self._wake.wait()
            self._wake.clear()
            try:
                self._turn(idle=watching.expired())
            except Exception:  # whoever waits is told, and the next request is tried again
                logger.exception("the queue of %s failed", self._name)
                self._fail_queue(InternalError("the work could not be given to the engine"))

    def _turn(self, *, idle: bool) -> None:
        """Give the engine what there is room for; `idle` if nothing has happened for WATCH_SECONDS."""
        if (fault := self._engine.fault) is not None:
            self._fail_queue(Unavailable(f"the engine cannot score now: {fault}", retry_after=RETRY_SECONDS))
            if idle:  # calls answer as an engine breaks; those still there never will
                for call in self._window.calls:
                    call.answer.cancel()
        while (following := self._next()) is not None:
            self._begin(*following)
        self._timer.cancel()
        if self._queue and (wait := self._window.due - self.clock()) > 0:
            self._timer = self._loop.call_later(wait, self._wake.set)

    def _next(self) -> tuple[str, list[Work]] | None:
        """The next call, if there is work and room for it: of the class whose turn it is, model by model."""
        if not self._queue:
            return None
        head = self._queue.peek()
        service_class = self._queue.flow(head).service_class
        room = self._window.room(service_class, head.tokens, self.clock())
        if head.tokens > room:
            return None
        return service_class, sorted(self._queue.take(room), key=lambda work: work.model)

    def _begin(self, service_class: str, works: list[Work]) -> None:
        now, tokens = self.clock(), sum(work.tokens for work in works)
        answer = asyncio.create_task(_asked(_by_model(works), urgent=service_class == "interactive"))
        queued = min(work.queued for work in works)
        call = Call(works, tokens, service_class, queued, now, tokens + self._window.load, answer)
        answer.add_done_callback(lambda _: self._answered(call))
        for work in works:
            work.started, work.call = now, call
            self._watch.waited(work.model, service_class, now - work.queued)
        self._window.begin(call)
        call.served = asyncio.create_task(self._serve(call))

    def _answered(self, call: Call) -> None:
        """The engine has room again."""
        seconds = self._window.answered(call, self.clock())
        self._wake.set()
        if not call.answer.cancelled():
            for works in _by_model(call.works):
                tokens = sum(work.tokens for work in works)
                self._watch.called(works[0].model, tokens, len(works), seconds * tokens / call.tokens)

    async def _serve(self, call: Call) -> None:
        try:
            results = await self._take_over(call)
        except Exception:
            logger.exception("evidence of %d jobs could not be taken over", len(call.works))
            results = [InternalError("the evidence could not be taken over")] * len(call.works)
        self._window.calls.discard(call)
        for work, result in zip(call.works, results, strict=True):
            self._settle(work, result)

    async def _take_over(self, call: Call) -> list[Rows | ApiError]:
        await asyncio.wait([call.answer])
        works = call.works
        results = outcomes(call.answer, [work.job for work in works], [work.engine.info.signals for work in works])
        pairs = [(work, rows) for work, rows in zip(works, results, strict=True) if not isinstance(rows, ApiError)]
        # What an engine said as it broke is not kept.
        await self._store.keep([(work.wanted, rows) for work, rows in pairs if work.engine.fault is None])
        return results

    def _fail_queue(self, error: ApiError) -> None:
        """Whoever waits for work that no call has gets the error."""
        for work in self._queue:
            self._queue.remove(work)
            self._settle(work, error)
        for work in [work for work in self.pending.values() if work.call not in self._window.calls]:
            self._settle(work, error)

    def _settle(self, work: Work, result: Rows | ApiError) -> None:
        self._forget(work)
        # Work that was not done says nothing of the engine's speed.
        done = self._admission.drop if isinstance(result, ApiError) else self._admission.finish
        done(work.flow.team, work.tokens)
        work.done.set_result(result)

    def _forget(self, work: Work) -> None:
        if self.pending.get(work.wanted.key) is work:
            del self.pending[work.wanted.key]


def _by_model(works: Sequence[Work]) -> list[list[Work]]:
    parts: dict[str, list[Work]] = {}
    for work in works:
        parts.setdefault(work.model, []).append(work)
    return list(parts.values())


def _asked(parts: Sequence[Sequence[Work]], *, urgent: bool) -> Coroutine[Any, Any, list[Rows | Exception]]:
    """The answers to all works, from the engine of each part."""
    asked = [works[0].engine.score([replace(work.job, urgent=urgent) for work in works]) for works in parts]
    return asked[0] if len(asked) == 1 else _joined(asked, [len(works) for works in parts])


async def _joined(
    asked: Sequence[Coroutine[Any, Any, list[Rows | Exception]]], sizes: Sequence[int]
) -> list[Rows | Exception]:
    """One after the other, as many of each as were asked for: what fails is the fault of that model alone."""
    joined: list[Rows | Exception] = []
    for answers, size in zip(await asyncio.gather(*asked, return_exceptions=True), sizes, strict=True):
        if isinstance(answers, Exception):
            joined += [answers] * size
        elif isinstance(answers, BaseException):
            raise answers
        else:
            joined += counted(answers, size)
    return joined
