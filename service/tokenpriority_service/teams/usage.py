"""What each team used of each model, hour by hour.

Counts in memory, and adds to the table every second; replicas add to the same rows. While the database is away the
counts wait, merged by team, model and hour, so that they stay few. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

import sqlalchemy as sa

from tokenpriority.errors import Unavailable
from tokenpriority.schema import UsageEntry
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.tables import usage
from tokenpriority_service.teams.background import Background
from tokenpriority_service.teams.dialect import Clock, insert

HOUR = 3600
FLUSH_SECONDS = 1.0
AWAY_SECONDS = 5.0
"""Pause while the database is away."""
RECENT_DAYS = 31
"""What is read if nobody says since when: the table grows by a row per team, model and hour, for good."""
ROWS = 500
"""Rows of one statement; databases bound its parameters."""

Place = tuple[str, str, int]
"""Team, model, hour."""
Counts = tuple[int, int, int, int]
"""Tokens, cached tokens, requests, rejections."""

logger = logging.getLogger(__name__)


class UsageLog:
    """The usage of all teams, as one replica sees it. `add` and `read` are for the thread of the event loop."""

    def __init__(self, database: Database, clock: Clock = time.time) -> None:
        self._database = database
        self._clock = clock
        self._waiting: dict[Place, Counts] = {}
        self._writing = asyncio.Lock()
        self._background = Background(self._turn)

    def add(
        self,
        team: str,
        model: str,
        *,
        tokens: int = 0,
        cached_tokens: int = 0,
        requests: int = 0,
        rejections: int = 0,
    ) -> None:
        """Count something in the present hour, UTC. `model` is one the server has, or empty."""
        hour = int(self._clock() // HOUR * HOUR)
        self._merge({(team, model, hour): (tokens, cached_tokens, requests, rejections)})

    async def read(
        self, team: str | None, model: str | None, since: float | None, until: float | None
    ) -> list[UsageEntry]:
        """Hours that overlap [since, until), seconds since the epoch; oldest first. Of a team and a model, or of all.

        Without `until` there is no end; without `since` it begins RECENT_DAYS before `until`, or before now if that is
        earlier. What this replica counted is in it; what others counted in the last second may not be. Raises
        Unavailable.
        """
        await self._flush()
        if since is None:
            now = self._clock()
            since = (now if until is None else min(until, now)) - RECENT_DAYS * 24 * HOUR
        query = sa.select(usage).where(usage.c.hour > since - HOUR)
        if until is not None:
            query = query.where(usage.c.hour < until)
        if team is not None:
            query = query.where(usage.c.team == team)
        if model is not None:
            query = query.where(usage.c.model == model)
        query = query.order_by(usage.c.hour, usage.c.team, usage.c.model)
        # Built in the database's thread: there may be many.
        return await self._database.read(
            lambda connection: [UsageEntry(**row) for row in connection.execute(query).mappings()]
        )

    def start(self) -> None:
        """Begin to write. Needs a running event loop."""
        self._background.start()

    async def close(self) -> None:
        """Write what waits, and stop. Never raises."""
        await self._background.stop()
        try:
            await self._flush()
        except Unavailable:
            tokens = sum(counts[0] for counts in self._waiting.values())
            logger.warning("usage: the database is away; %d tokens of %d hours lost", tokens, len(self._waiting))

    async def _turn(self) -> float:
        try:
            await self._flush()
        except Unavailable:
            return AWAY_SECONDS
        return FLUSH_SECONDS

    async def _flush(self) -> None:
        """Write all that waits, after what is being written. Raises Unavailable; then it waits again."""
        # Shielded: a transaction in a thread goes on though who waited for it is gone.
        await asyncio.shield(asyncio.ensure_future(self._write()))

    async def _write(self) -> None:
        async with self._writing:
            if not self._waiting:
                return
            taken, self._waiting = self._waiting, {}
            try:
                await self._database.write(lambda connection: _add(connection, taken))
            except Exception:
                self._merge(taken)
                raise

    def _merge(self, more: Mapping[Place, Counts]) -> None:
        for place, counts in more.items():
            old = self._waiting.get(place, (0, 0, 0, 0))
            self._waiting[place] = (old[0] + counts[0], old[1] + counts[1], old[2] + counts[2], old[3] + counts[3])


COUNTED = ("tokens", "cached_tokens", "requests", "rejections")


def _add(connection: sa.Connection, counts: Mapping[Place, Counts]) -> None:
    # Sorted, so that two replicas take the locks of common rows in one order.
    rows = [
        {"team": team, "model": model, "hour": hour, **dict(zip(COUNTED, more, strict=True))}
        for (team, model, hour), more in sorted(counts.items())
    ]
    for start in range(0, len(rows), ROWS):
        new = insert(connection.dialect.name, usage).values(rows[start : start + ROWS])
        sums = {name: usage.c[name] + new.excluded[name] for name in COUNTED}
        connection.execute(new.on_conflict_do_update(index_elements=list(usage.primary_key), set_=sums))
