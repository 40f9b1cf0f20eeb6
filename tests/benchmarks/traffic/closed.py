"""Clients that each send the next request when the last is answered: how much the server gets done."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psutil

from traffic.target import Ids, Target, fresh, read


@dataclass(frozen=True, slots=True)
class Done:
    """What was answered in how many seconds."""

    requests: int
    tokens: int
    seconds: float
    cpu_seconds: float
    """Of the server, all its threads."""


async def closed(
    _stop: asyncio.Event, target: Target, pid: int, clients: int, seconds: float, shape: tuple[int, int], repeated: int
) -> Done:
    """`clients` at once for `seconds` at the server `pid`, with requests of `shape` [sequences, tokens].

    `repeated` is how many different requests go round, all of them scored before the clock starts, so that every
    sequence is found in the store; 0 makes every request new. Bodies that repeat are made once, and of their answers
    the counts are read, not each number: clients should not take the server's cores.
    """
    async with contextlib.AsyncExitStack() as stack:
        # A pool for each: one for all takes longer the more connections it has.
        pools = [await stack.enter_async_context(target.client(1)) for _ in range(clients)]
        await asyncio.gather(*(pool.get("/healthz") for pool in pools))
        known = [fresh(*shape) for _ in range(repeated)]
        for ids in known:
            await target.score(pools[0], ids)
        bodies = _bodies(target, shape, known)
        loop = asyncio.get_running_loop()
        server = psutil.Process(pid)
        began, computed = loop.time(), sum(server.cpu_times()[:2])

        async def ask(pool: httpx.AsyncClient) -> int:
            requests = 0
            while loop.time() < began + seconds:
                answer = await pool.post("/v1/priorities", content=next(bodies))
                _check(answer, shape, hit=bool(repeated))
                requests += 1
            return requests

        requests = sum(await asyncio.gather(*(ask(pool) for pool in pools)))
        computed = sum(server.cpu_times()[:2]) - computed
        return Done(requests, requests * shape[0] * shape[1], loop.time() - began, computed)


def _bodies(target: Target, shape: tuple[int, int], known: list[Ids]) -> Iterator[bytes]:
    if known:
        return itertools.cycle([target.body(ids) for ids in known])
    return (target.body(fresh(*shape)) for _ in itertools.count())


def _check(answer: httpx.Response, shape: tuple[int, int], *, hit: bool) -> None:
    if not hit:
        read(answer, shape[1])
        return
    assert answer.status_code == 200, answer.content[:500]
    assert answer.headers["x-tokenpriority-cached-tokens"] == str(shape[0] * shape[1])
