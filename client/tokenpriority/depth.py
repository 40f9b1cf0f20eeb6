"""How many batches are kept ahead of a consumer, so that it need not wait for their scores.

Knows how long scores took to come, and when batches were taken by a clock that stands still while the consumer waits.
Knows nothing of threads, loaders or requests.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Literal

Wanted = int | Literal["auto"]

DEPTH_LIMIT = "must be 'auto' or a whole number of at least 1"
START = 8
"""Batches ahead at first, and at least: enough where scoring takes up to 0.7 of a step, with jitter. Those begun
together at the start wait for each other, so they are not measured."""
MEASURED = 16
"""Batches whose scores must have come before anything is derived."""
WINDOW = 256
"""Batches that are remembered."""
SPARE = 4
"""Batches beyond those the consumer takes while scores may be under way."""
LIMIT = 128
"""Most batches ahead. The scores of a scorer slower than its consumer take the longer the more is asked for, so that
depth would grow for ever, and what is ahead of an early end was scored for nothing. 128 batches of 65,536 tokens hold
64 MiB of scores; a trainer that takes up to 124 micro-batches at once still finds all of them ready."""


def is_depth(depth: Any) -> bool:
    """Whether it is within DEPTH_LIMIT."""
    return depth == "auto" or (type(depth) is int and depth >= 1)


def check_depth(depth: Any) -> None:
    """Raises ValueError if it is not within DEPTH_LIMIT."""
    if not is_depth(depth):
        raise ValueError(f"depth: {DEPTH_LIMIT}, got {depth!r}")


class Depth:
    """A depth that is given, or "auto": as many batches as the consumer takes while scores may be under way, and SPARE.

    For a consumer of even steps that is ceil(p99 of the time scores take / step) + SPARE; one that takes the
    micro-batches of a step all at once is counted as it takes them. It never shrinks, and may serve one iteration after
    the other.
    """

    def __init__(self, wanted: Wanted) -> None:
        check_depth(wanted)
        self._auto = wanted == "auto"
        self.value = wanted if isinstance(wanted, int) else START
        """Batches that may be ready or under way."""
        self._unmeasured = self.value
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._moments: deque[float] = deque(maxlen=WINDOW)

    def begin(self) -> int:
        """Note that an iteration begins, and return its depth: so many are asked for at once, and not measured."""
        self._unmeasured = self.value
        return self.value

    def took(self, moment: float, seconds: float) -> int:
        """Note that a batch was taken, and return by how much the depth has grown.

        `moment` is by the consumer's clock, in seconds, without the time it waited; `seconds` is how long the batch's
        scores took from the beginning of their request.
        """
        self._moments.append(moment)
        if self._unmeasured > 0:
            self._unmeasured -= 1
        else:
            self._seconds.append(seconds)
        if not self._auto or len(self._seconds) < MEASURED:
            return 0
        wanted = min(LIMIT, self._most_within(self._longest()) + SPARE)
        grown = max(0, wanted - self.value)
        self.value += grown
        return grown

    def _longest(self) -> float:
        """The 99th percentile of what scores took, by nearest rank: of fewer than 100, the longest."""
        return sorted(self._seconds)[math.ceil(0.99 * len(self._seconds)) - 1]

    def _most_within(self, seconds: float) -> int:
        """The most batches that were taken within a time so long."""
        first = most = 0
        for last, moment in enumerate(self._moments):
            while moment - self._moments[first] > seconds:
                first += 1
            most = max(most, last - first + 1)
        return most
