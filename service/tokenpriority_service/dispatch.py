"""The work of one model: a queue in order of arrival, handed to the engine in calls of which several run at once.

Knows jobs, who waits for them, how much an engine is given at once and what becomes of work when it fails. Knows
nothing of requests, methods or HTTP. A job is computed once however many wait for it, kept when it succeeds, and given
up when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass

from tokenpriority.errors import ApiError, InternalError, Unavailable
from tokenpriority_service.admission import Admission
from tokenpriority_service.engines.engine import Engine, Ids, Job, Rows
from tokenpriority_service.outcome import outcomes
from tokenpriority_service.store import EvidenceStore, Wanted

SLICE_TOKENS = 65_536
"""Most tokens of one call (a longer sequence goes alone): enough to fill batches by length, few enough that the first
answers come soon."""

WINDOW_TOKENS = 2 * SLICE_TOKENS
"""Most tokens an engine has at once: while one call ends, the next is already there."""

WATCH_SECONDS = 1.0
"""How often an engine with work is asked whether it can still score."""

RETRY_SECONDS = 2.0
"""`retry_after` while a model is loading or its engine is out of order."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Work:
    """One job in progress, shared by all who wait for it."""

    wanted: Wanted
    job: Job
    done: asyncio.Future[Rows | ApiError]
    """The evidence, or the error the job met; never cancelled, never an exception."""
    waiters: int = 0
    started: float | None = None
    """`time.monotonic()` when the engine got it."""
    call: _Call | None = None
    """The call it is in, once it started."""

    @property
    def tokens(self) -> int:
        """What it costs."""
        return len(self.job.token_ids)


@dataclass(slots=True, eq=False)
class _Call:
    """One call of the engine, and the task that takes its answer over."""

    works: list[Work]
    answer: asyncio.Task[list[Rows | Exception]]
    served: asyncio.Task[None] | None = None

    @property
    def tokens(self) -> int:
        return sum(work.tokens for work in self.works)


class Dispatcher:
    """The queue in front of one engine."""

    def __init__(self, engine: Engine, store: EvidenceStore, admission: Admission) -> None:
        self._engine = engine
        self._store = store
        self._admission = admission
        self._queue: deque[Work] = deque()
        self._pending: dict[bytes, Work] = {}
        self._calls: set[_Call] = set()
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    def find(self, wanted: Wanted) -> Work | None:
        """Work in progress that will answer this too."""
        work = self._pending.get(wanted.key)
        return work if work is not None and work.wanted.covers(wanted) else None

    def enqueue(self, wanted: Wanted, token_ids: Ids) -> Work:
        """Work for tokens that have been admitted; it starts with no waiters, so `join` it at once."""
        job = Job(token_ids, wanted.score_from, wanted.top20)
        work = Work(wanted, job, self._loop.create_future())
        self._pending[wanted.key] = work
        self._queue.append(work)
        self._wake.set()
        return work

    def join(self, work: Work) -> Work:
        """One more waits for this work."""
        work.waiters += 1
        return work

    def leave(self, work: Work) -> None:
        """One fewer waits for it; work that nobody waits for is given up where that is still possible."""
        work.waiters -= 1
        if work.waiters or work.done.done():
            return
        if work.call is None:
            self._queue.remove(work)
            self._settle(work, Unavailable("the work was given up"))
            self._wake.set()
        elif not any(other.waiters for other in work.call.works):
            work.call.answer.cancel()
            for other in work.call.works:
                self._forget(other)

    async def close(self) -> None:
        """Stop; whoever still waits gets Unavailable."""
        tasks = [self._task, *(call.served for call in self._calls if call.served is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for call in self._calls:
            call.answer.cancel()
            self._queue.extend(call.works)
        self._calls.clear()
        self._fail_queue(Unavailable("the work was given up: the server is shutting down"))

    async def _run(self) -> None:
        while True:
            watching = asyncio.timeout(WATCH_SECONDS if self._calls else None)
            with contextlib.suppress(TimeoutError):
                async with watching:
                    await self._wake.wait()
            self._wake.clear()
            if (fault := self._engine.fault) is not None:
                self._fail_queue(Unavailable(f"the engine cannot score now: {fault}", retry_after=RETRY_SECONDS))
                if watching.expired():  # calls answer as an engine breaks; those still there never will
                    for call in self._calls:
                        call.answer.cancel()
            while works := self._next():
                self._begin(works)

    def _next(self) -> list[Work]:
        """The works of the next call, in order of arrival: what waits and has room. An idle engine takes any one."""
        room = WINDOW_TOKENS - sum(call.tokens for call in self._calls)
        works: list[Work] = []
        tokens = 0
        while self._queue:
            tokens += self._queue[0].tokens
            if tokens > (min(room, SLICE_TOKENS) if works else room) and (works or self._calls):
                break
            works.append(self._queue.popleft())
        return works

    def _begin(self, works: list[Work]) -> None:
        call = _Call(works, asyncio.create_task(self._engine.score([work.job for work in works])))
        now = time.monotonic()
        for work in works:
            work.started, work.call = now, call
        self._calls.add(call)
        call.served = asyncio.create_task(self._serve(call))

    async def _serve(self, call: _Call) -> None:
        try:
            results = await self._take_over(call)
        except Exception:
            logger.exception("evidence of %d jobs could not be taken over", len(call.works))
            results = [InternalError("the evidence could not be taken over")] * len(call.works)
        self._calls.discard(call)
        self._wake.set()
        for work, result in zip(call.works, results, strict=True):
            self._settle(work, result)

    async def _take_over(self, call: _Call) -> list[Rows | ApiError]:
        await asyncio.wait([call.answer])
        results = outcomes(call.answer, [work.job for work in call.works], self._engine.info.signals)
        if self._engine.fault is None:  # what an engine said as it broke is not kept
            pairs = zip(call.works, results, strict=True)
            await self._store.keep([(work.wanted, rows) for work, rows in pairs if not isinstance(rows, ApiError)])
        return results

    def _fail_queue(self, error: ApiError) -> None:
        while self._queue:
            self._settle(self._queue.popleft(), error)

    def _settle(self, work: Work, result: Rows | ApiError) -> None:
        self._forget(work)
        # Work that was not done says nothing of the engine's speed.
        (self._admission.drop if isinstance(result, ApiError) else self._admission.finish)(work.tokens)
        work.done.set_result(result)

    def _forget(self, work: Work) -> None:
        if self._pending.get(work.wanted.key) is work:
            del self._pending[work.wanted.key]
