"""Whose turn it is in the threads that tokenise."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress
from contextvars import ContextVar

import pytest

from tokenpriority_service.requests.text_threads import THREADS, TextThreads


class Work:
    """Says that it began, and waits to be released."""

    def __init__(self) -> None:
        self.began, self.release = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.began.set()
        assert self.release.wait(30)
        return "done"


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.began.wait, 30)


def test_a_team_has_one_thread_and_others_have_theirs() -> None:
    async def run() -> None:
        threads = TextThreads()
        first, second, other = Work(), Work(), Work()
        tasks = [asyncio.create_task(threads.run(team, w)) for team, w in (("a", first), ("a", second), ("b", other))]
        await begun(first)
        await begun(other)
        assert not second.began.is_set()
        first.release.set()
        await begun(second)
        second.release.set()
        other.release.set()
        assert await asyncio.gather(*tasks) == ["done"] * 3
        threads.close()

    asyncio.run(run())


def test_who_hangs_up_keeps_the_turn_until_the_work_ends() -> None:
    async def run() -> None:
        threads = TextThreads()
        left, waiting, after = Work(), Work(), Work()
        tasks = [asyncio.create_task(threads.run("a", work)) for work in (left, waiting, after)]
        await begun(left)
        for task in tasks[:2]:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.05)
        assert not after.began.is_set()
        left.release.set()
        after.release.set()
        assert await tasks[2] == "done"
        assert not waiting.began.is_set()
        threads.close()

    asyncio.run(run())


def test_what_fails_gives_the_turn_back_and_nothing_is_kept_of_a_team() -> None:
    async def run() -> None:
        threads = TextThreads()
        about = ContextVar("about", default="nothing")
        about.set("this request")
        for team in range(2 * THREADS):
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    await threads.run(str(team), lambda: 1 // 0)
            assert await threads.run(str(team), about.get) == "this request"
        await asyncio.sleep(0)
        gc.collect()  # tracebacks hold on to their frames
        assert not threads._turns
        threads.close()

    asyncio.run(run())
