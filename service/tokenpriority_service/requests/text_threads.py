"""The threads that tokenise and render.

Knows teams by name, and that a text may take its thread many seconds. One request of a team at a time, in threads of
their own: so one team's texts hold up neither another's nor the other work that leaves the event loop. Knows nothing of
what is done.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

THREADS = 4
"""Teams whose texts are worked on at once."""


class TextThreads:
    """Runs the text work of requests. `run` is for the thread of the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="text")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, team: str, work: Callable[[], T]) -> T:
        """The result of `work`, after what this team asked for before."""
        turn = self._turns.setdefault(team, asyncio.Lock())
        await turn.acquire()
        try:
            context = contextvars.copy_context()
            done = asyncio.get_running_loop().run_in_executor(self._pool, context.run, work)
        except BaseException:
            turn.release()
            raise
        done.add_done_callback(lambda _: turn.release())
        # Shielded: a thread goes on though who waited for it is gone, and until then it is its team's.
        return await asyncio.shield(done)

    def close(self) -> None:
        """Begin nothing more; what is being done ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
