"""Whether two replicas are the same model: one fixed sequence, scored by both.

Knows the sequence and how far two answers may be apart. It tells other weights; a model tuned so little that the
sequence hardly changes is not told apart.
"""

from __future__ import annotations

import numpy as np

from tokenpriority_service.engines.engine import Rows

MEAN, WORST = 0.1, 1.0
"""Largest mean and largest single difference of log-probabilities, nats. Two runs of one bfloat16 model differ by up to
0.5 on unlikely tokens; two models differ by several nats on most tokens of a sequence without meaning.
"""

LENGTH = 64
"""Tokens of the sequence, or the longest a replica takes."""


def disagreement(ours: Rows, theirs: Rows) -> str | None:
    """How two answers [6, T] to the probe differ, None if they agree."""
    apart = np.abs(ours[0, 1:] - theirs[0, 1:])
    if apart.mean() <= MEAN and apart.max() <= WORST:
        return None
    return f"mean {apart.mean():.3g}, largest {apart.max():.3g} nats"
