"""The work of one model.

Knows jobs, who waits for them and whose tokens they are; when they are done is the `Feed`'s. Knows nothing of requests,
methods or HTTP. A job is computed once however many wait for it, kept when it succeeds, and given up when nobody waits
any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from tokenpriority.errors import ApiError
from tokenpriority_service.engines.engine import Engine, Ids, Job, Rows
from tokenpriority_service.scheduling.fair_queue import Flow
from tokenpriority_service.scheduling.feed import Feed
from tokenpriority_service.scheduling.window import Call
from tokenpriority_service.store import Wanted


@dataclass(slots=True, eq=False)
class Work:
    """One job in progress, shared by all who wait for it."""

    model: str
    engine: Engine
    """The model's, which may be one of several on the engine of its feed."""
    wanted: Wanted
    job: Job
    flow: Flow
    """Whose tokens it is; what waits may stand in another flow, see `Dispatcher.join`."""
    done: asyncio.Future[Rows | ApiError]
    """The evidence, or the error the job met; never cancelled, never an exception."""
    queued: float
    """The clock when it was enqueued."""
    waiters: int = 0
    started: float | None = None
    """The clock when the engine got it."""
    call: Call | None = None
    """The call it is in, once it started."""

    @property
    def tokens(self) -> int:
        """What it costs."""
        return len(self.job.token_ids)


class Dispatcher:
    """Where work for one model is found, given in and waited for; `engine` is that of `feed` or one of its adapters."""

    def __init__(self, feed: Feed, engine: Engine, *, name: str) -> None:
        self._feed = feed
        self._engine = engine
        self._name = name
        self._pending = feed.pending

    @property
    def queued(self) -> Mapping[tuple[str, str], int]:
        """(team, class) -> tokens that wait for the engine."""
        return self._feed.queued(self._name)

    def find(self, wanted: Wanted) -> Work | None:
        """Work in progress that will answer this too."""
        work = self._pending.get(wanted.key)
        return work if work is not None and work.wanted.covers(wanted) else None

    def enqueue(self, wanted: Wanted, token_ids: Ids, flow: Flow, salt: str) -> Work:
        """Work for tokens that have been admitted; it starts with no waiters, so `join` it at once. Only work of one
        `salt` shares computed prefixes.
        """
        job = Job(token_ids, wanted.score_from, wanted.top20, salt)
        done = asyncio.get_running_loop().create_future()
        work = Work(self._name, self._engine, wanted, job, flow, done, self._feed.clock())
        self._feed.push(work)
        return work

    def join(self, work: Work, flow: Flow) -> Work:
        """One more waits for this work. Queued bulk work that someone interactive waits for stands in their flow from
        then on; it stays the tokens of whom it was.
        """
        work.waiters += 1
        if flow.service_class == "interactive":
            self._feed.hasten(work, flow)
        return work

    def leave(self, work: Work) -> bool:
        """One fewer waits for it; work that nobody waits for is given up where that is still possible. True if that
        was before an engine began with it: nothing was done for its tokens.
        """
        work.waiters -= 1
        return not work.waiters and self._feed.drop(work)

    async def close(self) -> None:
        """Stop the engine's feed; whoever still waits, under any model, gets Unavailable."""
        await self._feed.close()
