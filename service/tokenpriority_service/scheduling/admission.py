"""How much work the server accepts, in tokens, and how much of it of each team.

Knows the tokens queued or in the engines, whose they are, and how fast they leave. Knows nothing of what they are. Over
a bound a request is refused at once, with the time after which it would fit.

A team may hold up to its weight times what is free: a dynamic threshold (Choudhury, Hahne, IEEE/ACM Transactions on
Networking 6, 1998). A team alone gets half the server or more, many teams share it by weight, and some room is always
left for one that has nothing yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from tokenpriority_service.scheduling.drain import Drain, wait
from tokenpriority_service.scheduling.refusals import ServerFull, ShareExceeded
from tokenpriority_service.teams.caller import ANYONE


class Admission:
    """The bound on tokens queued or in flight, over all models."""

    def __init__(self, max_queued_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._all = Drain()
        self._teams: dict[str, Drain] = {}
        """Only of teams that hold something."""

    @property
    def queued_tokens(self) -> int:
        """Tokens queued or in flight, of all teams."""
        return self._all.tokens

    @property
    def tokens_per_second(self) -> float | None:
        """Speed at which accepted work has lately been finished; None before the first."""
        return self._all.speed

    def held(self, team: str) -> int:
        """Tokens a team has queued or in flight."""
        return self._teams[team].tokens if team in self._teams else 0

    def admit(self, team: str, weight: float, tokens: int) -> None:
        """Accept work of this many tokens. Raises ServerFull if there is no room for it, ShareExceeded if the team has
        no right to so much of it; both with `retry_after`.
        """
        if not tokens:  # all of it is stored, or being computed already
            return
        excess = self.queued_tokens + tokens - self.max_queued_tokens
        if excess > 0:
            raise ServerFull(
                f"the server has {self.queued_tokens} tokens queued and takes at most {self.max_queued_tokens} "
                f"(max_queued_tokens); this request needs {tokens} more",
                retry_after=wait(excess, self.tokens_per_second),
            )
        held, free = self.held(team), self.max_queued_tokens - self.queued_tokens
        # Callers without a key have the server to themselves.
        if team != ANYONE and held and held + tokens > weight * free:
            raise ShareExceeded(
                f"team {team} has {held} tokens queued, and this request needs {tokens} more; by its weight of "
                f"{weight:g} it may have at most {math.floor(weight * free)} while {free} of the server's "
                f"{self.max_queued_tokens} (max_queued_tokens) are free",
                retry_after=self._share_after(team, weight, tokens),
            )
        now = self._clock()
        self._all.take(tokens, now)
        self._teams.setdefault(team, Drain()).take(tokens, now)

    def finish(self, team: str, tokens: int) -> None:
        """Accepted work has been done."""
        now = self._clock()
        self._all.finish(tokens, now)
        self._teams[team].finish(tokens, now)
        self._let_go(team)

    def drop(self, team: str, tokens: int) -> None:
        """Accepted work was given up; it says nothing about speed."""
        self._all.drop(tokens)
        self._teams[team].drop(tokens)
        self._let_go(team)

    def _let_go(self, team: str) -> None:
        if not self._teams[team].tokens:
            del self._teams[team]

    def _share_after(self, team: str, weight: float, tokens: int) -> float:
        """Seconds until the request would fit the team's share if nobody else's work left or came."""
        drain = self._teams[team]
        # Each token that leaves makes the team's hold smaller and the free room larger; a team with none fits anyhow.
        free = self.max_queued_tokens - self.queued_tokens
        excess = min((drain.tokens + tokens - weight * free) / (1 + weight), drain.tokens)
        return wait(excess, drain.speed or self.tokens_per_second)
