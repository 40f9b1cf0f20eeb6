"""The work of one model: a queue in order of arrival, handed to the engine a slice at a time.

Knows jobs, who waits for them, and what a sound answer of an engine looks like. Knows nothing of requests, methods or
HTTP. A job is computed once however many wait for it, kept when it succeeds, and given up when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenpriority.errors import ApiError, EngineFault, InternalError, Unavailable
from tokenpriority.evidence import SIGNALS
from tokenpriority_service.admission import Admission
from tokenpriority_service.engines.engine import Engine, Job, Rows
from tokenpriority_service.store import EvidenceStore, Wanted

SLICE_TOKENS = 65_536
"""Tokens handed to an engine at once: enough to fill batches by length, few enough that the next ones start soon."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Work:
    """One job in progress, shared by all who wait for it."""

    key: bytes
    job: Job
    done: asyncio.Future[Rows | ApiError]
    """The evidence, or the error the job met; never cancelled, never an exception."""
    waiters: int = 0
    started: float | None = None
    """`time.monotonic()` when the engine got it."""

    @property
    def tokens(self) -> int:
        """What it costs."""
        return len(self.job.token_ids)


@dataclass(slots=True)
class _Call:
    task: asyncio.Task[list[Rows | Exception]]
    works: list[Work]


class Dispatcher:
    """The queue in front of one engine."""

    def __init__(self, engine: Engine, store: EvidenceStore, admission: Admission) -> None:
        self._engine = engine
        self._store = store
        self._admission = admission
        self._queue: deque[Work] = deque()
        self._pending: dict[bytes, Work] = {}
        self._call: _Call | None = None
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    def find(self, wanted: Wanted) -> Work | None:
        """Work in progress that will answer this too."""
        work = self._pending.get(wanted.key)
        return work if work is not None and work.job.score_from <= wanted.score_from else None

    def enqueue(self, key: bytes, job: Job) -> Work:
        """Work for a job whose tokens have been admitted; it starts with no waiters, so `join` it at once."""
        work = Work(key, job, self._loop.create_future())
        self._pending[key] = work
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
        if work.started is None:
            self._queue.remove(work)
            self._give_up(work)
        elif self._call is not None and not any(other.waiters for other in self._call.works):
            self._call.task.cancel()
            for other in self._call.works:
                self._forget(other)

    async def close(self) -> None:
        """Stop; whoever still waits gets Unavailable."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for work in list(self._queue):
            self._give_up(work)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            while self._queue:
                await self._serve(self._slice())
            self._wake.clear()

    def _slice(self) -> list[Work]:
        works = [self._queue.popleft()]
        tokens = works[0].tokens
        while self._queue and tokens + self._queue[0].tokens <= SLICE_TOKENS:
            works.append(self._queue.popleft())
            tokens += works[-1].tokens
        return works

    async def _serve(self, works: list[Work]) -> None:
        now = time.monotonic()
        for work in works:
            work.started = now
        self._call = _Call(asyncio.create_task(self._engine.score([work.job for work in works])), works)
        try:
            results = await self._answer(self._call)
        except asyncio.CancelledError:
            self._call.task.cancel()
            for work in works:
                self._give_up(work)
            raise
        except Exception:
            logger.exception("evidence of %d jobs could not be taken over", len(works))
            results = [InternalError("the evidence could not be taken over")] * len(works)
        given_up = self._call.task.cancelled()
        self._call = None
        for work, result in zip(works, results, strict=True):
            self._forget(work)
            (self._admission.drop if given_up else self._admission.finish)(work.tokens)
            work.done.set_result(result)

    async def _answer(self, call: _Call) -> list[Rows | ApiError]:
        await asyncio.wait([call.task])
        results = _results(call.task, call.works, self._engine.info.signals)
        pairs = zip(call.works, results, strict=True)
        await self._store.keep(
            [(Wanted(w.key, w.job.score_from), rows) for w, rows in pairs if not isinstance(rows, ApiError)]
        )
        return results

    def _give_up(self, work: Work) -> None:
        self._forget(work)
        self._admission.drop(work.tokens)
        work.done.set_result(Unavailable("the work was given up: the server is shutting down"))

    def _forget(self, work: Work) -> None:
        if self._pending.get(work.key) is work:
            del self._pending[work.key]


def _results(
    task: asyncio.Task[list[Rows | Exception]], works: Sequence[Work], signals: Sequence[str]
) -> list[Rows | ApiError]:
    """What the engine answered, checked: evidence as the protocol promises it, or the error of that job."""
    if task.cancelled():
        return [EngineFault("the work was given up")] * len(works)
    error = task.exception()
    if error is not None:
        logger.error("the engine failed on %d jobs", len(works), exc_info=error)
        return [EngineFault(f"the engine failed: {type(error).__name__}")] * len(works)
    answers = task.result()
    if len(answers) != len(works):
        return [EngineFault(f"the engine answered {len(answers)} of {len(works)} jobs")] * len(works)
    return [_checked(answer, work.job, signals) for answer, work in zip(answers, works, strict=True)]


def _checked(answer: Rows | Exception, job: Job, signals: Sequence[str]) -> Rows | ApiError:
    if isinstance(answer, ApiError):
        return answer
    if isinstance(answer, Exception):
        logger.error("the engine failed on a job of %d tokens", len(job.token_ids), exc_info=answer)
        return EngineFault(f"the engine failed: {type(answer).__name__}")
    shape = (len(SIGNALS), len(job.token_ids))
    if not isinstance(answer, np.ndarray) or answer.shape != shape or answer.dtype != np.float32:
        got = f"{answer.dtype}{list(answer.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
        return EngineFault(f"the engine's evidence must be float32{list(shape)}, got {got}")
    for row, name in enumerate(SIGNALS):
        bad = ~np.isfinite(answer[row, job.score_from :]) if name in signals else None
        if bad is not None and bad.any():
            index = job.score_from + int(bad.argmax())
            return EngineFault(f"the engine's {name} is {answer[row, index]} at token {index}")
    return answer
