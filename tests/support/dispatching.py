"""A dispatcher in virtual time, and teams that send it requests."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenpriority_service.engines.engine import Engine
from tokenpriority_service.scheduling.admission import Admission
from tokenpriority_service.scheduling.dispatch import Dispatcher, Work
from tokenpriority_service.scheduling.fair_queue import Flow
from tokenpriority_service.scheduling.feed import Feed
from tokenpriority_service.store import MemoryStore, Wanted

BULK, INTERACTIVE = Flow("many", "bulk", 1.0), Flow("few", "interactive", 1.0)


@dataclass
class Recorder:
    """Writes down what a dispatcher says."""

    waits: list[tuple[str, str, float]] = field(default_factory=list)
    calls: list[tuple[str, int, int, float]] = field(default_factory=list)

    def waited(self, model: str, service_class: str, seconds: float) -> None:
        self.waits.append((model, service_class, seconds))

    def called(self, model: str, tokens: int, sequences: int, seconds: float) -> None:
        self.calls.append((model, tokens, sequences, seconds))


class Desk:
    """A dispatcher with what it needs, and one for each of further models on its engine; made where an event loop
    runs.
    """

    def __init__(
        self, engine: Engine, max_queued_tokens: int = 10**9, adapters: Mapping[str, Engine] | None = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.watch = Recorder()
        self.admission = Admission(max_queued_tokens, self.loop.time)
        store = MemoryStore(0)  # which keeps nothing
        feed = Feed(engine, store, self.admission, self.watch, name="reference", clock=self.loop.time)
        models = {"reference": engine, **(adapters or {})}
        self.dispatchers = {name: Dispatcher(feed, each, name=name) for name, each in models.items()}
        self.dispatcher = self.dispatchers["reference"]
        self.answered: Counter[Flow] = Counter()
        """Tokens of requests that were answered."""
        self._keys = itertools.count()

    def send(self, length: int, flow: Flow, model: str = "reference") -> Work:
        """A new sequence, admitted and waited for."""
        self.admission.admit(flow.team, flow.weight, length)
        wanted = Wanted((next(self._keys).to_bytes(16, "big"),), length, 1, False)
        work = self.dispatchers[model].enqueue(wanted, np.zeros(length, np.uint32), flow, "")
        return self.dispatchers[model].join(work, flow)

    async def request(self, lengths: Sequence[int], flow: Flow, model: str = "reference") -> float:
        """Seconds until all of a request's sequences were scored."""
        began = self.loop.time()
        works = [self.send(length, flow, model) for length in lengths]
        await asyncio.wait({work.done for work in works})
        for work in works:
            assert isinstance(work.done.result(), np.ndarray), work.done.result()
        self.answered[flow] += sum(lengths)
        return self.loop.time() - began

    def saturate(
        self, lengths: Sequence[int], flow: Flow = BULK, clients: int = 8, model: str = "reference"
    ) -> list[asyncio.Task[Any]]:
        """Clients that send one such request after the other."""

        async def forever() -> None:
            while True:
                await self.request(lengths, flow, model)

        return [asyncio.create_task(forever()) for _ in range(clients)]
