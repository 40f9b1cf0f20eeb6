"""Eight clients in a process of their own, scoring batches over HTTP when told to."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any, Self

import httpx
import numpy as np

CLIENTS = 8


class Clients:
    """A process with eight concurrent clients of one server, of `kind` "tokenpriority" or "vllm"."""

    def __init__(self, kind: str, url: str, model: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(kind, url, model, theirs), daemon=True)
        self._process.start()

    def score(self, batch: list[list[int]]) -> None:
        """Score a batch, an eighth of it by each client in one request; raises what they met."""
        self._pipe.send(batch)
        answer = self._pipe.recv()
        if answer is not None:
            raise RuntimeError(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()


def _work(kind: str, url: str, model: str, pipe: Connection) -> None:
    asyncio.run(_serve(kind, url, model, pipe))


async def _serve(kind: str, url: str, model: str, pipe: Connection) -> None:
    send = {"tokenpriority": _tokenpriority, "vllm": _vllm}[kind]
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        while (batch := pipe.recv()) is not None:
            parts = [part for part in (batch[number::CLIENTS] for number in range(CLIENTS)) if part]
            try:
                await asyncio.gather(*(send(client, model, part) for part in parts))
                pipe.send(None)
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}")


async def _tokenpriority(client: httpx.AsyncClient, model: str, part: list[list[int]]) -> None:
    """What our client sends and reads, on one connection pool with the others."""
    from tokenpriority import schema, wire

    items = [schema.SequenceItem(token_ids=wire.pack(np.array(ids, np.uint32), wire.U4, wire.MSGPACK)) for ids in part]
    body = wire.encode(schema.PriorityRequest(sequences=items, model=model), wire.MSGPACK)
    headers = {"content-type": wire.MSGPACK, "accept": wire.MSGPACK}
    answer = await client.post("/v1/priorities", content=body, headers=headers)
    answer.raise_for_status()
    found = wire.decode(answer.content, schema.PriorityResponse, wire.MSGPACK)
    for ids, result in zip(part, found.results, strict=True):
        packed: Any = result.logprobs
        logprobs = wire.unpack(packed, wire.F4, "logprobs")
        assert len(logprobs) == len(ids)
        assert np.isfinite(logprobs[1:]).all()


async def _vllm(client: httpx.AsyncClient, model: str, part: list[list[int]]) -> None:
    body = {"model": model, "prompt": part, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    for ids, choice in zip(part, answer.json()["choices"], strict=True):
        assert len(choice["prompt_logprobs"]) == len(ids)
