"""When a request is sent again, after how long, and for how long at most.

Knows statuses, errors, delays and Retry-After. Knows nothing of sockets or clocks. Scoring has no side effects, so
sending it again is always safe.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tokenpriority.errors import ApiError, Overloaded, ServerAway, Unavailable

FIRST_DELAY = 0.5
MAX_DELAY = 8.0
MAX_RETRY_AFTER = 120.0
"""Seconds; a server that names a longer time is asked again after this one."""
JITTER = 0.25
"""Share of a delay that is random, so that many clients do not come back at once."""

_REQUEST_TIMEOUT, _CONFLICT, _TOO_MANY = 408, 409, 429
_NEVER = (501, 505)  # not implemented, version not supported: the same again next time


def worth_retrying(status: int) -> bool:
    """Whether an answer of this HTTP status may be another one next time."""
    return status in (_REQUEST_TIMEOUT, _CONFLICT, _TOO_MANY) or (status >= 500 and status not in _NEVER)


def next_delay(attempt: int, retry_after: float | None, rng: random.Random) -> float:
    """Seconds to wait after failed attempt number `attempt`, from 0.

    Never less than the server's Retry-After (up to MAX_RETRY_AFTER), and up to a JITTER's share more; without one
    0.5 s doubling to 8 s, less up to a JITTER's share.
    """
    if retry_after is not None:
        return min(retry_after, MAX_RETRY_AFTER) * (1 + JITTER * rng.random())
    return min(FIRST_DELAY * 2.0 ** min(attempt, 16), MAX_DELAY) * (1 - JITTER * rng.random())


class Patience:
    """What one request has left: attempts, seconds in which the server may put it off, seconds without a server.

    A server that refuses for a while and says how long (Overloaded or Unavailable, with Retry-After) is obeyed without
    using up an attempt: waiting for a quota's refill is no failure. All such waits together take at most `max_wait`
    seconds. A server that is away, so that nobody or only a gateway answers, may be so for `max_outage` seconds in all;
    None counts attempts instead. Whatever else fails uses up one of `retries` attempts after the first; `failed` are
    used up already. With retries = 0 a request is sent once, whatever the answer.
    """

    def __init__(
        self, retries: int, max_wait: float, rng: random.Random, failed: int = 0, max_outage: float | None = None
    ) -> None:
        self._retries = retries
        self._max_wait = max_wait
        self._max_outage = max_outage
        self._rng = rng
        self.failed = failed
        """Attempts used up."""
        self.unanswered = 0
        """Attempts made while the server was away, which used up none."""
        self.waited = 0.0
        """Seconds for which the server has put the request off."""
        self.away = 0.0
        """Seconds for which the server was away."""

    def delay(self, refusal: ApiError | None = None, took: float = 0.0) -> float | None:
        """Seconds to wait before the next attempt, None if there is to be none.

        `refusal` is what was answered, None if nothing was; `took` is how long the failed attempt lasted, in seconds.
        """
        named = None if refusal is None else refusal.retry_after
        if self._retries and named is not None and isinstance(refusal, Overloaded | Unavailable):
            delay = max(next_delay(0, named, self._rng), FIRST_DELAY)  # "0" for ever would be asked without a pause
            self.waited += delay
            return delay if self.waited <= self._max_wait else None
        if self._retries and self._max_outage is not None and (refusal is None or isinstance(refusal, ServerAway)):
            return self._outage(took, self._max_outage)
        if self.failed >= self._retries:
            return None
        self.failed += 1
        return next_delay(self.failed - 1, named, self._rng)

    def _outage(self, took: float, limit: float) -> float | None:
        delay = next_delay(self.unanswered, None, self._rng)
        if self.away + took + delay > limit:
            return None
        self.unanswered += 1
        self.away += took + delay
        return delay


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds named by a Retry-After header, as a number or a date; None if there is none or it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError):  # TypeError: a date without a zone
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
