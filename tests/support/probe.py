"""An engine that counts, waits or fails as a test says, and scores by another one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenpriority.errors import Unavailable
from tokenpriority_service.engines.engine import Engine, EngineInfo, Job, Rows


@dataclass
class Probe:
    """A real engine, watched: it counts jobs, can be held up, and can be made to answer wrongly."""

    inner: Engine
    jobs: list[Job] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    spoil: Callable[[Job, Rows], Any] | None = None
    cancelled: int = 0
    finished: int = 0
    fault: str | None = None
    most_calls: int = 0
    most_tokens: int = 0
    calls: list[int] = field(default_factory=list)
    """Tokens of each call in progress."""
    siblings: dict[str, Engine] = field(default_factory=dict)
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        self.release.set()

    @property
    def info(self) -> EngineInfo:
        return self.inner.info

    @property
    def tokenizer(self) -> Any | None:
        return self.inner.tokenizer

    @property
    def adapters(self) -> Mapping[str, Engine]:
        return self.siblings

    async def score(self, jobs: Sequence[Job]) -> list[Any]:
        tokens = sum(len(job.token_ids) for job in jobs)
        self.calls.append(tokens)
        self.most_calls = max(self.most_calls, len(self.calls))
        self.most_tokens = max(self.most_tokens, sum(self.calls))
        try:
            return await self._score(jobs)
        finally:
            self.calls.remove(tokens)

    async def _score(self, jobs: Sequence[Job]) -> list[Any]:
        self.jobs += jobs
        try:
            while not self.release.is_set():  # noqa: ASYNC110  # set from the test's own thread
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fault is not None:
            return [Unavailable(self.fault) for _ in jobs]
        rows = await self.inner.score(jobs)
        self.finished += len(jobs)
        if self.spoil is None:
            return list(rows)
        return [self.spoil(job, row) for job, row in zip(jobs, rows, strict=True) if not isinstance(row, Exception)]

    async def close(self) -> None:
        await self.inner.close()
