"""Time that passes only while everybody waits, and engines of a stated speed in it: the same run, to the last digit,
on any machine and however busy it is.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import selectors
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from tokenpriority_service.engines.batches import plan_batches
from tokenpriority_service.engines.engine import Engine, EngineInfo, Job, Rows
from tokenpriority_service.engines.fake import FakeEngine

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Instead of waiting, moves the clock on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self.now += max(timeout, 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._clock.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


@dataclass
class Simulated:
    """An engine that takes time and gives zeros. `turnaround` is what it takes until the server learns of an answer."""

    tokens_per_second: float
    overhead: float = 0.002
    turnaround: float = 0.003
    fault: str | None = None
    busy: float = 0.0
    """Seconds it worked."""
    tokens: int = 0
    """Tokens it did."""
    calls: list[int] = field(default_factory=list)
    """Tokens of each call it was given."""

    info: EngineInfo = FakeEngine().info
    tokenizer: Any | None = None

    @property
    def adapters(self) -> Mapping[str, Engine]:
        return {}

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        self.calls.append(sum(len(job.token_ids) for job in jobs))
        await self._do([len(job.token_ids) for job in jobs], urgent=all(job.urgent for job in jobs))
        await asyncio.sleep(self.turnaround)
        return [np.zeros((len(job.rows), len(job.token_ids)), np.float32) for job in jobs]

    async def _do(self, lengths: Sequence[int], *, urgent: bool) -> None:
        raise NotImplementedError

    async def _work(self, tokens: int) -> None:
        seconds = self.overhead + tokens / self.tokens_per_second
        self.busy += seconds
        self.tokens += tokens
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        pass


@dataclass
class Serial(Simulated):
    """One batch after the other: all that waits becomes one wave, its longest sequences first."""

    max_batch_tokens: int = 8192
    _waiting: list[tuple[int, _Countdown]] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def _do(self, lengths: Sequence[int], *, urgent: bool) -> None:
        call = _Countdown(len(lengths))
        self._waiting += [(length, call) for length in lengths]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await call.done.wait()

    async def _run(self) -> None:
        while self._waiting:
            wave, self._waiting = self._waiting, []
            lengths = [length for length, _ in wave]
            for batch in plan_batches(lengths, self.max_batch_tokens):
                await self._work(sum(lengths[index] for index in batch))
                for index in batch:
                    wave[index][1].one()


_BATCHING = replace(FakeEngine().info, batches=True, urgent_first=True)


@dataclass
class Stepped(Simulated):
    """Steps of at most `budget` tokens, what is urgent first, else in order of arrival, long sequences cut (continuous
    batching)."""

    budget: int = 8192
    info: EngineInfo = _BATCHING
    _waiting: list[tuple[bool, int, int, _Countdown]] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)
    _task: asyncio.Task[None] | None = None

    async def _do(self, lengths: Sequence[int], *, urgent: bool) -> None:
        call = _Countdown(len(lengths))
        for length in lengths:
            heapq.heappush(self._waiting, (not urgent, next(self._numbers), length, call))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await call.done.wait()

    async def _run(self) -> None:
        while self._waiting:
            left, ended = self.budget, []
            while self._waiting and left:
                later, number, length, call = heapq.heappop(self._waiting)
                taken = min(length, left)
                left -= taken
                if taken < length:
                    heapq.heappush(self._waiting, (later, number, length - taken, call))
                else:
                    ended.append(call)
            await self._work(self.budget - left)
            for call in ended:
                call.one()


@dataclass
class Distant(Simulated):
    """So far away that every call takes `latency` whatever it holds, many at once."""

    latency: float = 0.2

    async def _do(self, lengths: Sequence[int], *, urgent: bool) -> None:
        self.tokens += sum(lengths)
        await asyncio.sleep(self.latency + sum(lengths) / self.tokens_per_second)


class _Countdown:
    """Done after so many."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.done = asyncio.Event()

    def one(self) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()
