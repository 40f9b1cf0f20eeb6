"""A team that has a whole data set to score and keeps the server busy: a closed loop."""

from __future__ import annotations

import asyncio

from traffic.target import Target, fresh

IN_FLIGHT = 8
"""Requests at a time."""
SEQUENCES, TOKENS = 16, 512
"""Of each request."""


async def bulk(stop: asyncio.Event, target: Target) -> list[float]:
    """When each request was answered, in seconds; at `stop` those not answered are given up."""
    answered: list[float] = []

    async with target.client(IN_FLIGHT) as client:

        async def ask() -> None:
            while True:
                await target.score(client, fresh(SEQUENCES, TOKENS))
                answered.append(asyncio.get_running_loop().time())

        asking = [asyncio.create_task(ask()) for _ in range(IN_FLIGHT)]
        stopping = asyncio.create_task(stop.wait())
        done, rest = await asyncio.wait([stopping, *asking], return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done - {stopping}:
            task.result()  # raises what it met
    return answered
