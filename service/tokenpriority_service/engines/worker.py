"""One thread that works off the jobs of many concurrent calls in batches.

Knows waiting, batching order, cancellation and what becomes of an error. Knows nothing of models: it is given `run` (a
batch of jobs to their results) and `plan` (lengths to batches), which are made on the thread too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from tokenpriority.errors import EngineFault, Unavailable
from tokenpriority_service.engines.engine import Job, Rows

Result = Rows | Exception
Run = Callable[[Sequence[Job]], list[Result]]
Plan = Callable[[Sequence[int]], list[list[int]]]
_log = logging.getLogger(__name__)


class _Call:
    """The jobs of one call; its future is done when every job has a result."""

    def __init__(self, size: int) -> None:
        self.future: Future[list[Result]] = Future()
        self._results: list[Result | None] = [None] * size
        self._missing = size

    def deliver(self, index: int, result: Result) -> None:
        """Set a job's result; only the first one counts."""
        if self._results[index] is not None:
            return
        self._results[index] = result
        self._missing -= 1
        if self._missing == 0:
            # The caller may cancel at any moment, also between a check and the delivery.
            with contextlib.suppress(InvalidStateError):
                self.future.set_result([each for each in self._results if each is not None])


@dataclass(frozen=True, slots=True)
class _Item:
    job: Job
    call: _Call
    index: int

    def deliver(self, result: Result) -> None:
        self.call.deliver(self.index, result)


class Worker:
    """Runs batches of jobs on a thread of its own, from construction until `close`.

    `begin` runs first, on that thread; the constructor waits for it and raises what it raises.

    All that waits when the thread is free becomes one wave, planned together whichever calls it came from; what
    arrives meanwhile is the next wave, so nothing waits for more than the waves before it.
    """

    def __init__(self, begin: Callable[[], tuple[Run, Plan]], *, name: str) -> None:
        self._waiting: list[_Item] = []
        self._closed = False
        self._changed = threading.Condition()
        begun: Future[None] = Future()
        # A daemon: a process whose owner forgot `close` still ends.
        self._thread = threading.Thread(target=self._live, args=(begin, begun), name=name, daemon=True)
        self._thread.start()
        begun.result()

    async def score(self, jobs: Sequence[Job]) -> list[Result]:
        """The result of each job, in order. A cancelled call drops the jobs whose batch has not begun."""
        if not jobs:
            return []
        call = _Call(len(jobs))
        items = [_Item(job, call, index) for index, job in enumerate(jobs)]
        with self._changed:
            if self._closed:
                return [Unavailable("the engine is closed") for _ in jobs]
            self._waiting += items
            self._changed.notify()
        return await asyncio.wrap_future(call.future)

    async def close(self) -> None:
        """Stop after the batch now running; jobs not begun become Unavailable. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _live(self, begin: Callable[[], tuple[Run, Plan]], begun: Future[None]) -> None:
        try:
            self._run, self._plan = begin()
        except BaseException as error:
            begun.set_exception(error)
            return
        begun.set_result(None)
        self._work()

    def _work(self) -> None:
        while wave := self._next_wave():
            try:
                self._work_off(wave)
            except Exception as error:
                # Only a bug arrives here; it must not leave callers waiting.
                _log.exception("scoring %d jobs failed outside their batches", len(wave))
                for item in wave:
                    item.deliver(_fault(error))

    def _next_wave(self) -> list[_Item]:
        """All that waits, as soon as something does; empty once closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            wave, self._waiting = self._waiting, []
        return wave

    def _work_off(self, wave: list[_Item]) -> None:
        for batch in self._plan([len(item.job.token_ids) for item in wave]):
            items = [wave[i] for i in batch if not wave[i].call.future.cancelled()]
            if self._closed:
                for item in items:
                    item.deliver(Unavailable("the engine was closed before this sequence was scored"))
            elif items:
                self._run_batch(items)

    def _run_batch(self, items: list[_Item]) -> None:
        """Run a batch and deliver; after an error each job is tried alone, so that a bad one fails by itself."""
        try:
            results = self._run([item.job for item in items])
        except Exception as error:
            if len(items) == 1:
                _log.exception("a sequence of %d tokens failed", len(items[0].job.token_ids))
                items[0].deliver(_fault(error))
                return
            _log.warning("a batch of %d sequences failed, trying each alone: %r", len(items), error)
        else:
            for item, result in zip(items, results, strict=True):
                item.deliver(result)
            return
        # Outside the handler: the error's traceback would keep the failed batch's tensors alive.
        for item in items:
            if not item.call.future.cancelled():
                self._run_batch([item])


def _fault(error: Exception) -> Exception:
    fault = EngineFault(f"the engine failed on this sequence: {type(error).__name__}: {error}")
    fault.__cause__ = error.with_traceback(None)
    return fault
