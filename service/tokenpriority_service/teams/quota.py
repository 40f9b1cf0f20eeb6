"""What a team may have computed, charged before it is.

Two limits: tokens per minute (a bucket) and tokens in flight, each over all replicas. Both are exact however many
replicas charge at once: a charge locks its team in the database for as long as it takes. What is given back counts at
once on this replica, and a moment later in the database. Knows nothing of keys, requests or engines.
"""

from __future__ import annotations

import asyncio
import logging
import time

import sqlalchemy as sa

from tokenpriority.errors import TooLarge, Unavailable
from tokenpriority_service.database.database import Database
from tokenpriority_service.teams import allowance, in_flight
from tokenpriority_service.teams.background import Background
from tokenpriority_service.teams.books import Books
from tokenpriority_service.teams.caller import Caller
from tokenpriority_service.teams.charge import Charge, Remaining
from tokenpriority_service.teams.charging import Charging, Settling, remaining, tokens_elsewhere
from tokenpriority_service.teams.dialect import Clock

WRITE_SECONDS = 0.25
"""How long what is given back may wait to be written."""
HEARTBEAT_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Quota:
    """The quotas of all teams, as one replica charges them. `replica` is a name no other process has, now or later.

    With PostgreSQL the times that count are the database's, and `clock` serves to measure speeds alone.
    """

    def __init__(self, database: Database, replica: str, clock: Clock = time.time) -> None:
        self._database = database
        self._books = Books(replica, clock)
        self._background = Background(self._turn)
        self._beat = time.monotonic()

    async def charge(self, caller: Caller, tokens: int) -> Charge:
        """Charge a team for tokens that are about to be computed; whoever gets the Charge closes it.

        Raises TooLarge (never fits), Overloaded (fits after `retry_after`) or Unavailable (the database is away). Then,
        and where this is cancelled, nothing was charged.
        """
        _check_size(caller, tokens)
        if not tokens or not caller.limits.bounded:
            self._books.hold(caller.team, tokens)
            return Charge(self._books, caller, tokens, None)
        charging = asyncio.ensure_future(self._charge(caller, tokens))
        try:
            return await asyncio.shield(charging)
        except asyncio.CancelledError:
            charging.add_done_callback(_give_back)  # a transaction in a thread cannot be stopped
            raise

    async def remaining(self, caller: Caller) -> Remaining:
        """What is left to a team. Raises Unavailable."""
        books, team, capacity = self._books, caller.team, caller.limits.tokens_per_minute
        if not caller.limits.bounded:
            return remaining(caller, None, books.held(team))

        def read(connection: sa.Connection) -> Remaining:
            left = None
            if capacity is not None:
                left = allowance.left(connection, team, capacity, books.refund_due(team), books.clock)
            return remaining(caller, left, books.held(team) + tokens_elsewhere(connection, books, caller))

        return await self._database.read(read)

    def start(self) -> None:
        """Begin to write what is given back, and to show that this replica is alive. Needs a running event loop."""
        self._background.start()

    async def close(self) -> None:
        """Stop, and write what waits; what is in flight counts no more. Never raises."""
        await self._background.stop()
        try:
            await self._write(all_held=False)
            await self._database.write(lambda connection: in_flight.leave(connection, self._books.replica))
        except Unavailable:
            logger.warning("quota: the database is away; tokens in flight here count until they expire")

    async def _charge(self, caller: Caller, tokens: int) -> Charge:
        charging = Charging(self._books, caller, tokens)
        try:
            return Charge(self._books, caller, tokens, await self._database.write(charging.run))
        except BaseException:
            charging.undo()
            raise

    async def _turn(self) -> float:
        beats = time.monotonic() - self._beat >= HEARTBEAT_SECONDS
        try:
            await self._write(all_held=beats)
        except Unavailable:
            return HEARTBEAT_SECONDS
        if beats:
            self._beat = time.monotonic()
        return WRITE_SECONDS

    async def _write(self, *, all_held: bool) -> None:
        """Write the books of each team that changed. Raises Unavailable; what could not be written still is to be."""
        away: Unavailable | None = None
        for team in self._books.to_write(all_held=all_held):
            settling = Settling(self._books, team)
            try:
                await self._database.write(settling.run)
            except Unavailable as error:  # it may be this team alone that somebody else has locked
                settling.undo()
                away = error
            except BaseException:
                settling.undo()
                raise
        if away is not None:
            raise away


def _check_size(caller: Caller, tokens: int) -> None:
    for name in ("tokens_per_minute", "concurrent_tokens"):
        limit = getattr(caller.limits, name)
        if limit is not None and tokens > limit:
            raise TooLarge(
                f"this request needs {tokens} tokens, and team {caller.team} may have at most {limit} ({name})"
            )


def _give_back(charging: asyncio.Future[Charge]) -> None:
    """Nobody waits for this charge any more."""
    if not charging.cancelled() and charging.exception() is None:
        charge = charging.result()
        charge.refund(charge.tokens)
