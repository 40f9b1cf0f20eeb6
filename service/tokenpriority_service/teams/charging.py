"""The transactions of a quota: one that charges, one that writes what was given back.

Each begins by locking its team, so that whatever it reads of the team holds until it ends, over all replicas; and each
can be undone in the books if the database did not commit it. Knows nothing of threads or tasks.
"""

from __future__ import annotations

import math

import sqlalchemy as sa

from tokenpriority_service.scheduling.refusals import ConcurrencyExceeded, RateExceeded
from tokenpriority_service.teams import allowance, in_flight
from tokenpriority_service.teams.books import Books
from tokenpriority_service.teams.caller import Caller
from tokenpriority_service.teams.charge import Remaining

SLACK_SECONDS = 0.001
"""Added to an exact wait: more than the rounding of any clock."""


class Charging:
    """Charge a team for tokens."""

    def __init__(self, books: Books, caller: Caller, tokens: int) -> None:
        self._books = books
        self._caller = caller
        self._team = caller.team
        self._tokens = tokens
        self._refund = self._held = 0

    def run(self, connection: sa.Connection) -> Remaining:
        """What is left then. Raises Overloaded, which rolls all of it back."""
        try:
            left = self._take(connection)
            return remaining(self._caller, left, self._hold(connection))
        except BaseException:
            self.undo()  # while the team is locked: the next charge must find the refund in the books
            raise

    def undo(self) -> None:
        """Nothing was committed: the books as they were. Again, it does nothing."""
        held, refund, self._held, self._refund = self._held, self._refund, 0, 0
        self._books.release(self._team, held, done=False)
        self._books.refund(self._team, refund)

    def _take(self, connection: sa.Connection) -> float | None:
        """Tokens out of the bucket; what it then holds, or None if there is no bucket. Locks the team."""
        capacity, clock = self._caller.limits.tokens_per_minute, self._books.clock
        if capacity is None:
            allowance.put_back(connection, self._team, 0, clock)
            return None
        self._refund = self._books.take_refund(self._team)
        left = allowance.take(connection, self._team, capacity, self._tokens, self._refund, clock)
        if left is None:
            there = allowance.left(connection, self._team, capacity, self._refund, clock)
            raise RateExceeded(
                f"team {self._team} has {math.floor(there)} left of its {capacity} tokens per minute "
                f"(tokens_per_minute); this request needs {self._tokens}",
                retry_after=_rounded_up(allowance.seconds_until(self._tokens - there, capacity)),
            )
        return left

    def _hold(self, connection: sa.Connection) -> int:
        """Tokens in flight, if they fit; how many then are, on all replicas."""
        books, limit = self._books, self._caller.limits.concurrent_tokens
        others = tokens_elsewhere(connection, books, self._caller)
        room = math.inf if limit is None else limit - others
        held = books.hold(self._team, self._tokens, room, shared=limit is not None)
        if held is None:
            used = others + books.held(self._team)
            raise ConcurrencyExceeded(
                f"team {self._team} has {used} tokens in flight of at most {limit} (concurrent_tokens); this request "
                f"needs {self._tokens}",
                retry_after=books.seconds_until(self._team, used + self._tokens - (room + others)),
            )
        self._held = self._tokens
        if limit is not None:
            in_flight.hold(connection, books.replica, self._team, held, books.clock)
        return held + others


class Settling:
    """Write what is in flight for a team, and put back what it was refunded."""

    def __init__(self, books: Books, team: str) -> None:
        self._books = books
        self._team = team
        self._held: int | None = None
        self._refund = 0

    def run(self, connection: sa.Connection) -> None:
        """Reads the books once the team is locked, so that no charge comes between reading and writing."""
        books, team = self._books, self._team
        allowance.put_back(connection, team, 0, books.clock)
        self._held, self._refund = books.settle(team)
        if self._refund:
            allowance.put_back(connection, team, self._refund, books.clock)
        if self._held is not None:
            in_flight.write(connection, books.replica, team, self._held, books.clock)

    def undo(self) -> None:
        """Nothing was committed: it is still to be written."""
        self._books.unsettle(self._team, self._refund, shared=self._held is not None)


def remaining(caller: Caller, left: float | None, in_flight_tokens: int) -> Remaining:
    """What a bucket and the tokens in flight leave to a team."""
    capacity = caller.limits.tokens_per_minute
    if left is None or capacity is None:
        return Remaining(None, 0.0, in_flight_tokens)
    return Remaining(math.floor(left), allowance.seconds_until(capacity - left, capacity), in_flight_tokens)


def tokens_elsewhere(connection: sa.Connection, books: Books, caller: Caller) -> int:
    """Tokens in flight on the other replicas, where there is a limit on them."""
    if caller.limits.concurrent_tokens is None:
        return 0
    return in_flight.others(connection, books.replica, caller.team, books.clock)


def _rounded_up(seconds: float) -> float:
    """To milliseconds, and never too short by the rounding of a clock."""
    return math.ceil(1000 * (seconds + SLACK_SECONDS)) / 1000
