"""How fast an engine works, and how much of its work fills a given time.

Knows tokens and seconds of calls. Knows nothing of queues or of engines.

A call that finds the engine with x tokens to do, its own among them, is answered after some seconds that it takes
whatever x is, and some for each of the x. Telling the two apart matters at both ends: tiny calls say nothing of how
much an engine can do, and one whose calls take long however small they are (a replica far away) must not be given ever
less because it seems slow. Medians are taken of the calls of late, since on a busy machine single ones take any time.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

CALLS = 32
"""Calls remembered."""
FEW = 4
"""Least number of small calls by which what a call takes anyway is told."""
GROWTH = 2
"""An engine is trusted with so many times the most it had of late: what was never seen is not promised."""


class Speed:
    """What the latest calls say. `first_tokens` are what an engine is given for want of experience."""

    def __init__(self, first_tokens: int) -> None:
        self._first_tokens = first_tokens
        self._calls: deque[tuple[int, float]] = deque(maxlen=CALLS)
        self._anyway = 0.0
        """Seconds a call takes whatever the engine has to do."""
        self._told = False
        """Whether that was ever told apart."""
        self._per_token: float | None = None

    def note(self, tokens: int, seconds: float) -> None:
        """A call was answered after so long; the engine had so many tokens to do when it began, its own included."""
        self._calls.append((tokens, seconds))
        most = max(tokens for tokens, _ in self._calls)
        large, took = _middle([call for call in self._calls if 2 * call[0] > most])
        small_calls = [call for call in self._calls if 2 * call[0] <= most]
        if len(small_calls) >= FEW:
            small, small_took = _middle(small_calls)
            self._anyway = took - large * max(took - small_took, 0.0) / (large - small)
            self._told = True
        self._anyway = min(max(self._anyway, 0.0), *(seconds for _, seconds in self._calls))
        self._per_token = (took - self._anyway) / large

    def seconds(self, tokens: int) -> float:
        """What so many tokens take, besides what a call takes anyway; 0 before the first call."""
        return tokens * (self._per_token or 0.0)

    def expected(self, tokens: int) -> float:
        """What a call of so many takes if the engine has nothing else; without end before the first call."""
        return math.inf if self._per_token is None else self._anyway + self.seconds(tokens)

    def tokens_in(self, seconds: float) -> int:
        """Tokens whose work takes so long, besides what a call takes anyway; at least 1."""
        if self._per_token is None:
            return self._first_tokens
        most = max(GROWTH * max(tokens for tokens, _ in self._calls), self._first_tokens)
        if not self._told and len(self._calls) >= 2 * FEW:
            return most  # all were alike: a larger one will tell
        return max(int(min(seconds / self._per_token, most)), 1) if self._per_token else most


def _middle(calls: list[tuple[int, float]]) -> tuple[float, float]:
    return median(tokens for tokens, _ in calls), median(seconds for _, seconds in calls)
