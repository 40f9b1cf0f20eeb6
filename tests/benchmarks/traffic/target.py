"""Whom a load calls, and one request as a client makes it: encoded, sent, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from tokenpriority import schema, wire

VOCABULARY = 512
"""Ids are below it; every model here knows them."""

_RANDOM = np.random.default_rng()

Ids = np.ndarray[Any, np.dtype[np.uint32]]


@dataclass(frozen=True, slots=True)
class Target:
    """One model of one server, called with one team's key."""

    url: str
    key: str
    service_class: schema.ServiceClass
    model: str

    def client(self, connections: int) -> httpx.AsyncClient:
        """A pool of at most this many connections."""
        headers = {"content-type": wire.MSGPACK, "accept": wire.MSGPACK, "authorization": f"Bearer {self.key}"}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, limits=limits, timeout=120, trust_env=False, verify=False
        )

    def body(self, ids: Ids) -> bytes:
        """A request for sequences [n, T]."""
        items = [schema.SequenceItem(token_ids=wire.pack(row, wire.U4, wire.MSGPACK)) for row in ids]
        request = schema.PriorityRequest(sequences=items, model=self.model, service_class=self.service_class)
        return wire.encode(request, wire.MSGPACK)

    async def score(self, client: httpx.AsyncClient, ids: Ids) -> schema.Usage:
        """What scoring sequences [n, T] cost; every number of the answer is read."""
        answer = await client.post("/v1/priorities", content=self.body(ids))
        return read(answer, ids.shape[1])


def read(answer: httpx.Response, length: int) -> schema.Usage:
    """The usage of an answer in which every sequence, of `length` tokens, was scored."""
    if answer.status_code != 200:
        raise RuntimeError(f"answered {answer.status_code}: {answer.content[:500]!r}")
    found = wire.decode(answer.content, schema.PriorityResponse, wire.MSGPACK)
    for result in found.results:
        packed: Any = result.logprobs
        logprobs = wire.unpack(packed, wire.F4, "logprobs")
        assert len(logprobs) == length
        assert np.isfinite(logprobs[1:]).all()
    return found.usage


def fresh(sequences: int, tokens: int) -> Ids:
    """Sequences nobody has seen, [sequences, tokens]; other ones in every run, so that no store knows them."""
    return _RANDOM.integers(0, VOCABULARY, (sequences, tokens), np.uint32)
