"""The worker: calls share batches, cancelled jobs never begin, errors stay with their jobs, nothing hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tokenpriority.errors import EngineFault, Unavailable
from tokenpriority_service.engines import Job
from tokenpriority_service.engines.worker import Plan, Run, Worker


def job(first: int, length: int = 2) -> Job:
    return Job(np.full(length, first, np.uint32))


def names(jobs: Sequence[Job]) -> list[int]:
    return [int(each.token_ids[0]) for each in jobs]


class Bench:
    """Runs batches of up to `size` in the order they came, keeps a record, and can be held inside a batch."""

    def __init__(self, size: int = 100, fail: Callable[[list[int]], Exception | None] = lambda _: None) -> None:
        self.ran: list[list[int]] = []
        self.inside = threading.Event()
        self.release = threading.Event()
        self.release.set()
        self._size, self._fail = size, fail

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        self.ran.append(names(jobs))
        self.inside.set()
        assert self.release.wait(30)
        if error := self._fail(names(jobs)):
            raise error
        return [np.full((6, len(each.token_ids)), each.token_ids[0], np.float32) for each in jobs]

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        return [list(range(len(lengths)))[at : at + self._size] for at in range(0, len(lengths), self._size)]

    def worker(self) -> Worker:
        return Worker(lambda: (self.run, self.plan), name="bench")

    async def hold(self) -> None:
        """Wait until a batch is running; it stays inside until `release` is set."""
        await asyncio.to_thread(self.inside.wait, 30)


def one_batch(lengths: Sequence[int]) -> list[list[int]]:
    return [list(range(len(lengths)))]


def values(results: Sequence[Any]) -> list[Any]:
    return [result if isinstance(result, Exception) else result[0, 0] for result in results]


def test_concurrent_calls_share_batches_and_get_their_own_results() -> None:
    bench = Bench()

    async def scenario() -> list[Any]:
        worker = bench.worker()
        bench.release.clear()
        first = asyncio.create_task(worker.score([job(0)]))
        await bench.hold()
        others = [asyncio.create_task(worker.score([job(n), job(n + 1)])) for n in (10, 20, 30)]
        await asyncio.sleep(0)
        bench.release.set()
        results = await asyncio.gather(first, *others)
        await worker.close()
        return [values(each) for each in results]

    assert asyncio.run(scenario()) == [[0], [10, 11], [20, 21], [30, 31]]
    assert bench.ran == [[0], [10, 11, 20, 21, 30, 31]]


def test_a_cancelled_call_drops_the_jobs_not_begun() -> None:
    bench = Bench(size=1)

    async def scenario() -> list[Any]:
        worker = bench.worker()
        bench.release.clear()
        cancelled = asyncio.create_task(worker.score([job(1), job(2), job(3)]))
        await bench.hold()
        kept = asyncio.create_task(worker.score([job(4)]))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        bench.release.set()
        results = await kept
        await worker.close()
        return values(results)

    assert asyncio.run(scenario()) == [4]
    assert bench.ran == [[1], [4]]


def test_a_bad_job_fails_alone() -> None:
    bench = Bench(fail=lambda batch: RuntimeError("token 7") if 7 in batch else None)

    async def scenario() -> list[Any]:
        worker = bench.worker()
        results = await worker.score([job(6), job(7), job(8)])
        after = await worker.score([job(9)])
        await worker.close()
        return values([*results, *after])

    before, bad, *others = asyncio.run(scenario())
    assert (before, others) == (6, [8, 9])
    assert isinstance(bad, EngineFault)
    assert "RuntimeError: token 7" in str(bad)
    assert isinstance(bad.__cause__, RuntimeError)
    assert bench.ran == [[6, 7, 8], [6], [7], [8], [9]]


def test_an_error_of_one_job_beside_results_is_kept_as_it_is() -> None:
    fault = EngineFault("position 3")

    async def scenario() -> list[Any]:
        worker = Worker(lambda: (lambda jobs: [fault for _ in jobs], one_batch), name="x")
        results: list[Any] = await worker.score([job(1), job(2)])
        await worker.close()
        return results

    assert asyncio.run(scenario()) == [fault, fault]


@pytest.mark.parametrize("broken", ["plan", "run"])
def test_a_bug_answers_every_caller(broken: str) -> None:
    """A plan that raises, or a run that returns too little, reaches the callers, and the thread lives on."""
    bench = Bench()
    calls = []

    def plan(lengths: Sequence[int]) -> list[list[int]]:
        calls.append(lengths)
        if broken == "plan" and len(calls) == 1:
            raise ZeroDivisionError("plan")
        return bench.plan(lengths)

    def run(jobs: Sequence[Job]) -> list[Any]:
        results = bench.run(jobs)
        return results[:-1] if broken == "run" and len(calls) == 1 else results

    async def scenario() -> tuple[list[Any], list[Any]]:
        worker = Worker(lambda: (run, plan), name="x")
        first = await worker.score([job(1), job(2)])
        second = await worker.score([job(3)])
        await worker.close()
        return values(first), values(second)

    first, second = asyncio.run(scenario())
    assert isinstance(first[-1], EngineFault)
    assert second == [3]


def test_close_ends_what_has_not_begun() -> None:
    bench = Bench(size=1)

    async def scenario() -> tuple[list[Any], list[Any]]:
        worker = bench.worker()
        bench.release.clear()
        running = asyncio.create_task(worker.score([job(1), job(2)]))
        await bench.hold()
        closing = asyncio.create_task(worker.close())
        await asyncio.sleep(0)
        bench.release.set()
        await closing
        await worker.close()
        return values(await running), values(await worker.score([job(3)]))

    (first, second), [third] = asyncio.run(scenario())
    assert first == 1
    assert isinstance(second, Unavailable)
    assert isinstance(third, Unavailable)
    assert bench.ran == [[1]]
    assert not [each for each in threading.enumerate() if each.name == "bench"]


def test_all_happens_on_one_thread() -> None:
    """As OpenMP wants it, which keeps threads for every thread that computes."""
    seen: list[int] = []

    def begin() -> tuple[Run, Plan]:
        seen.append(threading.get_ident())
        return run, one_batch

    def run(jobs: Sequence[Job]) -> list[Any]:
        seen.append(threading.get_ident())
        return bench.run(jobs)

    bench = Bench()

    async def scenario() -> None:
        worker = Worker(begin, name="bench")
        await asyncio.gather(*(worker.score([job(n)]) for n in range(3)))
        await worker.close()

    asyncio.run(scenario())
    assert len(seen) > 1
    assert set(seen) == {seen[0]} != {threading.get_ident()}


def test_what_cannot_begin_raises_and_leaves_no_thread() -> None:
    def begin() -> tuple[Run, Plan]:
        raise ValueError("model: no such folder")

    with pytest.raises(ValueError, match="model: no such folder"):
        Worker(begin, name="never begun")
    for each in threading.enumerate():
        if each.name == "never begun":
            each.join(30)
            assert not each.is_alive()


def test_no_jobs_are_no_work() -> None:
    bench = Bench()

    async def scenario() -> list[Any]:
        worker = bench.worker()
        results: list[Any] = await worker.score([])
        await worker.close()
        return results

    assert asyncio.run(scenario()) == []
    assert bench.ran == []
