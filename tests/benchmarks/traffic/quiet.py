"""A team that asks for little, now and then, and waits for the answer: an open loop."""

from __future__ import annotations

import asyncio

import numpy as np

from traffic.target import Target, fresh

PERIOD_SECONDS = 2.0
"""Between requests, on average."""
TOKENS = 1024
"""Of a request, in one sequence."""


async def quiet(_stop: asyncio.Event, target: Target, seconds: float, seed: int) -> list[float]:
    """The seconds each request took, from when it was due: a late start is not taken for a fast answer. The schedule is
    of `seed`."""
    loop = asyncio.get_running_loop()

    async with target.client(connections=64) as client:
        await client.get("/healthz")  # connected
        began = loop.time()

        async def ask(due: float) -> float:
            await asyncio.sleep(due - (loop.time() - began))
            await target.score(client, fresh(1, TOKENS))
            return loop.time() - began - due

        return await asyncio.gather(*(ask(due) for due in _schedule(np.random.default_rng(seed), seconds)))


def _schedule(rng: np.random.Generator, seconds: float) -> list[float]:
    """When requests are due: each in a period of its own, at any place in it."""
    return [(number + rng.uniform()) * PERIOD_SECONDS for number in range(int(seconds / PERIOD_SECONDS))]
