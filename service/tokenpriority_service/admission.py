"""How much work the server accepts, in tokens.

Knows the tokens queued or in the engines and how fast they leave. Knows nothing of what they are. Over the bound a
request is refused at once, with the time after which it would fit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from tokenpriority.errors import Overloaded

MEMORY = 0.9
"""Share of the past that each finished piece of work leaves in the measured speed."""
RETRY_SECONDS = (1.0, 60.0)
"""Least and greatest `retry_after`; before any speed was measured it is the least."""


class Admission:
    """The bound on tokens queued or in flight, over all models."""

    def __init__(self, max_queued_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_queued_tokens = max_queued_tokens
        self.queued_tokens = 0
        self._clock = clock
        self._mark = 0.0
        """When the last work finished, or, if later, when the server last stopped being idle."""
        self._done_tokens = 0.0
        self._done_seconds = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Speed at which accepted work has lately been finished; None before the first."""
        return self._done_tokens / self._done_seconds if self._done_seconds else None

    def admit(self, tokens: int) -> None:
        """Accept work of this many tokens. Raises Overloaded, with `retry_after`, if it does not fit."""
        excess = self.queued_tokens + tokens - self.max_queued_tokens
        if excess > 0:
            raise Overloaded(
                f"the server has {self.queued_tokens} tokens queued and takes at most {self.max_queued_tokens} "
                f"(max_queued_tokens); this request needs {tokens} more",
                retry_after=self._retry_after(excess),
            )
        if not self.queued_tokens:
            self._mark = self._clock()
        self.queued_tokens += tokens

    def finish(self, tokens: int) -> None:
        """Accepted work has been done."""
        now = self._clock()
        self._done_tokens = MEMORY * self._done_tokens + tokens
        self._done_seconds = MEMORY * self._done_seconds + (now - self._mark)
        self._mark = now
        self.queued_tokens -= tokens

    def drop(self, tokens: int) -> None:
        """Accepted work was given up; it says nothing about speed."""
        self.queued_tokens -= tokens

    def _retry_after(self, excess: int) -> float:
        least, greatest = RETRY_SECONDS
        speed = self.tokens_per_second
        if not speed:
            return least
        return float(min(max(math.ceil(excess / speed), least), greatest))
