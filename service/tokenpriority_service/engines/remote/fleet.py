"""Scoring over the replicas: what is asked, and what happens when it fails.

Knows retries and what becomes of an error. Leaves the choice of a replica to `rotation`, and its fitness to `watch`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from tokenpriority.errors import EngineFault, InvalidSequence, Unavailable
from tokenpriority.retry import FIRST_DELAY, MAX_DELAY, MAX_RETRY_AFTER
from tokenpriority_service.engines.engine import Job, Rows
from tokenpriority_service.engines.remote.examination import Served
from tokenpriority_service.engines.remote.replica import Refused, Replica, Unreachable
from tokenpriority_service.engines.remote.rotation import Rotation
from tokenpriority_service.engines.remote.way import WAYS

Result = Rows | Exception

_REFUSES_SEQUENCE = (400, 413, 422)


class Fleet:
    """Scores over replicas of one model, `width` sequences of a call at a time."""

    def __init__(self, model: str, served: Served, rotation: Rotation, *, retries: int, width: int) -> None:
        self._model = model
        self._way = WAYS[served.evidence]
        self._rotation = rotation
        self._retries = retries
        self._width = width

    async def score(self, jobs: Sequence[Job]) -> list[Result]:
        """The result of each job, in order; a cancelled call cancels its requests."""
        results: list[Result | None] = [None] * len(jobs)
        left = iter(enumerate(jobs))

        async def work() -> None:
            for number, job in left:
                results[number] = await self._score(job)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._width, len(jobs))):
                group.create_task(work())
        return [result for result in results if result is not None]

    async def _score(self, job: Job) -> Result:
        """Asked of one replica after the other until it is answered or refused, or no attempt is left."""
        tried: set[Replica] = set()
        failure: Exception = EngineFault("no attempt was made")
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(random.uniform(0, min(FIRST_DELAY * 2 ** (attempt - 1), MAX_DELAY)))
            try:
                async with self._rotation.turn(len(job.token_ids), tried) as replica:
                    tried.add(replica)
                    return await self._ask(replica, job)
            except (Unavailable, InvalidSequence) as error:
                return error
            except EngineFault as error:
                replica.suspect()
                return EngineFault(f"{replica.url}: {error.message}")
            except (Unreachable, Refused) as error:
                failure = self._failure(replica, error)
                if isinstance(error, Refused) and not error.passing:
                    return failure
        return failure

    async def _ask(self, replica: Replica, job: Job) -> Rows:
        body = self._way.body(self._model, job.token_ids)
        answer = await replica.score(self._way.ROUTE, body, tokens=len(job.token_ids))
        return self._way.rows(answer, job)

    def _failure(self, replica: Replica, error: Unreachable | Refused) -> Exception:
        """What the job meets if this was the last attempt; the replica is held or suspected as the error says."""
        if not isinstance(error, Refused):
            replica.suspect()
            return Unavailable(f"{replica.url}: {error}")
        if error.status == 429:
            wait = min(error.retry_after or 0.0, MAX_RETRY_AFTER)
            self._rotation.hold(replica, wait)
            return Unavailable(f"{replica.url}: {error}", retry_after=wait or None)
        if error.status in _REFUSES_SEQUENCE:
            return InvalidSequence(f"token_ids: {replica.url} refuses the sequence: {error}")
        replica.suspect()
        if error.status == 503:
            return Unavailable(f"{replica.url}: {error}", retry_after=error.retry_after)
        return EngineFault(f"{replica.url}: {error}")
