"""Everything a server meets in a day, in a minute: for how its memory grows."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx
import numpy as np

from traffic.target import Ids, Target, fresh

CALLERS = 6
"""Callers at once, each with one request at a time."""
PAUSE_SECONDS = 0.02
"""Of each caller between requests."""
JSON = {"content-type": "application/json", "accept": "application/json"}


async def mixed(stop: asyncio.Event, target: Target, seed: int) -> dict[str, int]:
    """Until `stop`: requests of each kind in turn; how many of each were answered as they should be.

    `target` is of the fake engine, so that many fit, with a key that may do anything. Raises
    RuntimeError on any other answer.
    """
    rng = np.random.default_rng(seed)
    known = fresh(16, 512)
    answered: Counter[str] = Counter()

    async with target.client(CALLERS) as client:
        await target.score(client, known)

        async def call() -> None:
            while not stop.is_set():
                kind = KINDS[int(rng.integers(len(KINDS)))]
                await kind(client, target, rng, known)
                answered[kind.__name__.removeprefix("_")] += 1
                await asyncio.sleep(PAUSE_SECONDS)

        await asyncio.gather(*(call() for _ in range(CALLERS)))
    return dict(answered)


async def _new(client: httpx.AsyncClient, target: Target, rng: np.random.Generator, _known: Ids) -> None:
    await target.score(client, fresh(int(rng.integers(1, 16)), int(rng.integers(2, 1024))))


async def _stored(client: httpx.AsyncClient, target: Target, _rng: np.random.Generator, known: Ids) -> None:
    await target.score(client, known)


async def _text(client: httpx.AsyncClient, target: Target, rng: np.random.Generator, _known: Ids) -> None:
    texts = [{"text": f"{number} " * 40} for number in rng.integers(0, 1 << 30, 4)]
    body = {"model": target.model, "sequences": texts, "signals": ["entropy"], "offsets": True}
    _expect(await client.post("/v1/priorities", json=body, headers=JSON), 200)


async def _malformed(client: httpx.AsyncClient, target: Target, rng: np.random.Generator, _known: Ids) -> None:
    body = target.body(fresh(2, 64))
    _expect(await client.post("/v1/priorities", content=body[: len(body) // 2]), 400)


async def _unknown_key(client: httpx.AsyncClient, target: Target, rng: np.random.Generator, _known: Ids) -> None:
    headers = {"authorization": f"Bearer tp_{rng.bytes(6).hex()}_{rng.bytes(32).hex()}"}
    _expect(await client.post("/v1/priorities", content=target.body(fresh(1, 8)), headers=headers), 401)


async def _abandoned(client: httpx.AsyncClient, target: Target, rng: np.random.Generator, _known: Ids) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(rng.uniform(0, 0.02)):
            await target.score(client, fresh(64, 512))


async def _looked(client: httpx.AsyncClient, _target: Target, _rng: np.random.Generator, _known: Ids) -> None:
    for path in ("/metrics", "/v1/limits", "/v1/usage", "/v1/models", "/v1/methods", "/readyz"):
        _expect(await client.get(path, headers=JSON), 200)


Kind = Callable[[httpx.AsyncClient, Target, np.random.Generator, Ids], Awaitable[None]]
KINDS: tuple[Kind, ...] = (_new, _stored, _text, _malformed, _unknown_key, _abandoned, _looked)


def _expect(answer: httpx.Response, status: int) -> None:
    if answer.status_code != status:
        raise RuntimeError(
            f"{answer.request.url.path}: expected {status}, got {answer.status_code}: {answer.text[:500]}"
        )
