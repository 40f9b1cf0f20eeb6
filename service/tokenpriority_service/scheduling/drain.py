"""How fast tokens that somebody holds leave, and so how long until there is room.

Knows tokens and times. Knows nothing of who holds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HALF_SECONDS = 10.0
"""After so long a measured speed counts half. By time, not by piece: the pieces of one call are finished together."""
RETRY_SECONDS = (1.0, 60.0)
"""Least and greatest wait told; before any speed was measured it is the least."""


@dataclass(slots=True)
class Drain:
    """Tokens held and how fast they leave; time in which nothing was held does not count."""

    tokens: int = 0
    mark: float = 0.0
    """When the last work finished, or, if later, when there last began to be work."""
    done_tokens: float = 0.0
    done_seconds: float = 0.0

    @property
    def speed(self) -> float | None:
        """Tokens per second; None before the first was finished."""
        return self.done_tokens / self.done_seconds if self.done_seconds else None

    def take(self, tokens: int, now: float) -> None:
        """Tokens are held."""
        if not self.tokens:
            self.mark = now
        self.tokens += tokens

    def finish(self, tokens: int, now: float) -> None:
        """Tokens leave, for their work is done."""
        seconds = max(now - self.mark, 0.0)  # a clock may be set back
        kept = 0.5 ** (seconds / HALF_SECONDS)
        self.done_tokens = kept * self.done_tokens + tokens
        self.done_seconds = kept * self.done_seconds + seconds
        self.mark = now
        self.tokens -= tokens

    def drop(self, tokens: int) -> None:
        """Tokens leave, for their work was given up; it says nothing about speed."""
        self.tokens -= tokens


def wait(tokens: float, speed: float | None) -> float:
    """Seconds until so many tokens are finished, whole and within RETRY_SECONDS."""
    least, greatest = RETRY_SECONDS
    return float(min(max(math.ceil(tokens / speed), least), greatest)) if speed else least
