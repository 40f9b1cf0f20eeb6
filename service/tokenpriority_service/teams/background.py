"""Work that goes on beside requests: a turn, a pause, a turn.

Knows how such a task is kept alive and stopped. Knows nothing of the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

RETRY_SECONDS = 5.0
"""Pause after a turn that failed on a bug."""

logger = logging.getLogger(__name__)


class Background:
    """Runs `turn` again and again; it answers with the seconds until the next. An error of it does not end the task."""

    def __init__(self, turn: Callable[[], Awaitable[float]]) -> None:
        self._turn = turn
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End once the turn in progress is over. Again, or before `start`, it does nothing."""
        self._stopping.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                pause = await self._turn()
            except Exception:
                logger.exception("a background task failed; it goes on")
                pause = RETRY_SECONDS
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                continue
