"""What this replica has in flight for each team, what it has yet to give back, and how fast it finishes.

In memory, for any thread; `charging` takes it to the database. Knows no tables and no limits.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from tokenpriority_service.scheduling.drain import Drain, wait
from tokenpriority_service.teams.dialect import Clock


@dataclass(slots=True)
class Account:
    """One team's page."""

    flight: Drain = field(default_factory=Drain)
    refund: int = 0
    """Tokens to put back into the team's bucket."""
    shared: bool = False
    """Whether other replicas must know what is in flight here: they have, or had, a row of ours."""
    changed: bool = False
    """Whether something is to be written."""

    @property
    def held(self) -> int:
        """Tokens in flight on this replica."""
        return self.flight.tokens


@dataclass
class Books:
    """The accounts of all teams."""

    replica: str
    """The name of this process among those that share the database."""
    clock: Clock
    _accounts: dict[str, Account] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hold(self, team: str, tokens: int, room: float = math.inf, *, shared: bool = False) -> int | None:
        """Note tokens as in flight if then at most `room` are; how many now are, or None if they do not fit."""
        with self._lock:
            account = self._account(team)
            if account.held + tokens > room:
                return None
            account.flight.take(tokens, self.clock())
            account.shared |= shared
            return account.held

    def release(self, team: str, tokens: int, *, done: bool) -> None:
        """Tokens are in flight no more; `done` says whether they were finished rather than given up."""
        with self._lock:
            account = self._account(team)
            account.changed |= account.shared and tokens > 0
            if done and tokens:
                account.flight.finish(tokens, self.clock())
            else:
                account.flight.drop(tokens)

    def held(self, team: str) -> int:
        """Tokens in flight for a team."""
        with self._lock:
            return self._account(team).held

    def refund(self, team: str, tokens: int) -> None:
        """Note tokens to be put back."""
        with self._lock:
            account = self._account(team)
            account.refund += tokens
            account.changed |= tokens > 0

    def refund_due(self, team: str) -> int:
        """Tokens that wait to be put back."""
        with self._lock:
            return self._account(team).refund

    def take_refund(self, team: str) -> int:
        """Those tokens; they wait no more."""
        with self._lock:
            account = self._account(team)
            due, account.refund = account.refund, 0
            return due

    def seconds_until(self, team: str, tokens: float) -> float:
        """About how long until so many tokens are finished, at the speed the team has here."""
        with self._lock:
            return wait(tokens, self._account(team).flight.speed)

    def to_write(self, *, all_held: bool) -> list[str]:
        """Teams of which something is to be written; with `all_held` also those whose row must look alive."""
        with self._lock:
            return [
                team
                for team, account in self._accounts.items()
                if account.changed or (all_held and account.shared and account.held)
            ]

    def settle(self, team: str) -> tuple[int | None, int]:
        """What to write for a team: tokens in flight (None if others need not know), and tokens to put back.

        Call it where the team is locked. If the write fails, `unsettle` takes back what this gave.
        """
        with self._lock:
            account = self._account(team)
            held = account.held if account.shared else None
            due, account.refund = account.refund, 0
            account.changed = False
            account.shared &= account.held > 0
            return held, due

    def unsettle(self, team: str, refund: int, *, shared: bool) -> None:
        """A write failed."""
        with self._lock:
            account = self._account(team)
            account.refund += refund
            account.shared |= shared
            account.changed = True

    def _account(self, team: str) -> Account:
        return self._accounts.setdefault(team, Account())
