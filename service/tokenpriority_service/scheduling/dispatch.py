"""The work of one model: a fair queue, handed to the engine in calls of which several run at once.

Knows jobs, who waits for them, whose tokens they are, how much an engine is given at once and what becomes of work when
it fails. Knows nothing of requests, methods or HTTP. A job is computed once however many wait for it, kept when it
succeeds, and given up when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from tokenpriority.errors import ApiError, InternalError, Unavailable
from tokenpriority_service.engines.engine import RETRY_SECONDS, Engine, Ids, Job, Rows
from tokenpriority_service.scheduling.admission import Admission
from tokenpriority_service.scheduling.fair_queue import FairQueue, Flow
from tokenpriority_service.scheduling.outcome import outcomes
from tokenpriority_service.scheduling.window import BATCHING, SERIAL, Call, Window
from tokenpriority_service.store import EvidenceStore, Wanted

WATCH_SECONDS = 1.0
"""How often an engine with work is asked whether it can still score."""

logger = logging.getLogger(__name__)


class Watch(Protocol):
    """Who is told how the work goes."""

    def waited(self, model: str, service_class: str, seconds: float) -> None:
        """A sequence was queued so long before an engine began with it."""

    def called(self, model: str, tokens: int, sequences: int, seconds: float) -> None:
        """An engine answered a call; `seconds` add up to the time it was busy."""


@dataclass(slots=True, eq=False)
class Work:
    """One job in progress, shared by all who wait for it."""

    wanted: Wanted
    job: Job
    flow: Flow
    """Whose tokens it is; what waits may stand in another flow, see `Dispatcher.join`."""
    done: asyncio.Future[Rows | ApiError]
    """The evidence, or the error the job met; never cancelled, never an exception."""
    queued: float
    """The clock when it was enqueued."""
    waiters: int = 0
    started: float | None = None
    """The clock when the engine got it."""
    call: Call | None = None
    """The call it is in, once it started."""

    @property
    def tokens(self) -> int:
        """What it costs."""
        return len(self.job.token_ids)


class Dispatcher:
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
        self._engine = engine
        self._store = store
        self._admission = admission
        self._watch = watch
        self._name = name
        self._clock = clock
        self._queue = queue()
        self._pending: dict[bytes, Work] = {}
        self._window = Window(BATCHING if engine.info.batches else SERIAL)
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_soon(self._wake.set)
        """Wakes when the engine is to get more bulk work."""
        self._task = asyncio.create_task(self._run())

    @property
    def queued(self) -> Mapping[tuple[str, str], int]:
        """(team, class) -> tokens that wait for the engine."""
        return self._queue.tokens

    def find(self, wanted: Wanted) -> Work | None:
        """Work in progress that will answer this too."""
        work = self._pending.get(wanted.key)
        return work if work is not None and work.wanted.covers(wanted) else None

    def enqueue(self, wanted: Wanted, token_ids: Ids, flow: Flow, salt: str) -> Work:
        """Work for tokens that have been admitted; it starts with no waiters, so `join` it at once. Only work of one
        `salt` shares computed prefixes.
        """
        job = Job(token_ids, wanted.score_from, wanted.top20, salt)
        work = Work(wanted, job, flow, self._loop.create_future(), self._clock())
        self._pending[wanted.key] = work
        self._queue.push(work, flow, work.tokens)
        self._wake.set()
        return work

    def join(self, work: Work, flow: Flow) -> Work:
        """One more waits for this work. Queued bulk work that someone interactive waits for stands in their flow from
        then on; it stays the tokens of whom it was.
        """
        work.waiters += 1
        waits = work.call is None and not work.done.done()
        if waits and flow.service_class == "interactive" and self._queue.flow(work).service_class == "bulk":
            self._queue.move(work, flow)
            self._wake.set()
        return work

    def leave(self, work: Work) -> bool:
        """One fewer waits for it; work that nobody waits for is given up where that is still possible. True if that
        was before an engine began with it: nothing was done for its tokens.
        """
        work.waiters -= 1
        if work.waiters or work.done.done():
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
        """Stop; whoever still waits gets Unavailable."""
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
        if self._queue and (wait := self._window.due - self._clock()) > 0:
            self._timer = self._loop.call_later(wait, self._wake.set)

    def _next(self) -> tuple[str, list[Work]] | None:
        """The next call, if there is work and room for it: the works at the head of the queue, of one class."""
        if not self._queue:
            return None
        head = self._queue.peek()
        service_class = self._queue.flow(head).service_class
        room = self._window.room(service_class, head.tokens, self._clock())
        works: list[Work] = []
        while self._queue:
            head = self._queue.peek()
            if head.tokens > room or self._queue.flow(head).service_class != service_class:
                break
            room -= head.tokens
            works.append(self._queue.pop())
        return (service_class, works) if works else None

    def _begin(self, service_class: str, works: list[Work]) -> None:
        now, tokens = self._clock(), sum(work.tokens for work in works)
        jobs = [replace(work.job, urgent=service_class == "interactive") for work in works]
        answer = asyncio.create_task(self._engine.score(jobs))
        call = Call(works, tokens, service_class, now, tokens + self._window.load, answer)
        answer.add_done_callback(lambda _: self._answered(call))
        for work in works:
            work.started, work.call = now, call
            self._watch.waited(self._name, service_class, now - work.queued)
        self._window.begin(call)
        call.served = asyncio.create_task(self._serve(call))

    def _answered(self, call: Call) -> None:
        """The engine has room again."""
        seconds = self._window.answered(call, self._clock())
        self._wake.set()
        if not call.answer.cancelled():
            self._watch.called(self._name, call.tokens, len(call.works), seconds)

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
        results = outcomes(call.answer, [work.job for work in call.works], self._engine.info.signals)
        if self._engine.fault is None:  # what an engine said as it broke is not kept
            pairs = zip(call.works, results, strict=True)
            await self._store.keep([(work.wanted, rows) for work, rows in pairs if not isinstance(rows, ApiError)])
        return results

    def _fail_queue(self, error: ApiError) -> None:
        """Whoever waits for work that no call has gets the error."""
        for work in self._queue:
            self._queue.remove(work)
            self._settle(work, error)
        for work in [work for work in self._pending.values() if work.call not in self._window.calls]:
            self._settle(work, error)

    def _settle(self, work: Work, result: Rows | ApiError) -> None:
        self._forget(work)
        # Work that was not done says nothing of the engine's speed.
        done = self._admission.drop if isinstance(result, ApiError) else self._admission.finish
        done(work.flow.team, work.tokens)
        work.done.set_result(result)

    def _forget(self, work: Work) -> None:
        if self._pending.get(work.wanted.key) is work:
            del self._pending[work.wanted.key]
