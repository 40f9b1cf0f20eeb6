"""Interactive work beside bulk sequences that take seconds, under an engine that works on all its calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dispatching import BULK, INTERACTIVE, Desk
from tokenpriority_service.engines.engine import Job
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.scheduling.window import WINDOW_TOKENS
from virtual import run

SPEED = 20_000.0


class SideBySide(FakeEngine):
    """Each call takes its own time, whatever else there is."""

    async def score(self, jobs: Sequence[Job]) -> list[Any]:
        await asyncio.sleep(sum(len(job.token_ids) for job in jobs) / SPEED)
        return [np.zeros((len(job.rows), len(job.token_ids)), np.float32) for job in jobs]


async def beside(lengths: Sequence[int]) -> float:
    """Seconds that four interactive sequences of 10 ms each take, once bulk work of these lengths was sent."""
    desk = Desk(SideBySide(max_model_len=10**6))
    for _ in range(12):
        await desk.request([500], BULK)  # so that the speed is known
    for length in lengths:
        desk.send(length, BULK)
        await asyncio.sleep(0.05)
    seconds = await desk.request([200] * 4, INTERACTIVE)
    await desk.dispatcher.close()
    return seconds


@pytest.mark.parametrize("lengths", [(60_000,), (60_000, 60_000), (WINDOW_TOKENS + 1,), (70_000, 70_000, 70_000)])
def test_interactive_work_does_not_wait_for_it(lengths: tuple[int, ...]) -> None:
    assert run(beside(lengths)) < 0.1
