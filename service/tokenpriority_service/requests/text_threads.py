"""The threads that tokenise and render.

Knows that a text may take its thread many seconds. One request at a time of a team's interactive work and one of its
bulk work, in threads of their own: so one's texts hold up neither another's nor the other work that leaves the event
loop. Knows nothing of what is done.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

THREADS = 4
"""Requests whose texts are worked on at once."""


class TextThreads:
    """Runs the text work of requests. `run` is for the thread of the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="text")
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    async def run(self, whose: Hashable, work: Callable[[], T]) -> T:
        """The result of `work`, after what the same (a team in one class) asked for before."""
        turn = self._turns.setdefault(whose, asyncio.Lock())
        await turn.acquire()
        try:
            context = contextvars.copy_context()
            done = asyncio.get_running_loop().run_in_executor(self._pool, context.run, work)
        except BaseException:
            turn.release()
            raise
        done.add_done_callback(lambda _: turn.release())
        # Shielded: a thread goes on though who waited for it is gone, and until then it is theirs.
        return await asyncio.shield(done)

    def close(self) -> None:
        """Begin nothing more; what is being done ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
