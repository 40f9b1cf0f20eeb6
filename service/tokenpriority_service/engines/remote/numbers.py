"""What every number of a replica must be before it is evidence.

Knows log-probabilities as numbers. Knows nothing of where they came from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenpriority.errors import EngineFault

MOST = 1e-4
"""Largest log-probability taken: rounding may lift one above 0."""


def check_logprobs(logprobs: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Raise EngineFault, naming value and position, unless all are finite and at most `MOST`.

    `logprobs` (T - 1,) are those of positions 1 to T - 1.
    """
    sound = np.isfinite(logprobs) & (logprobs <= MOST)
    if not sound.all():
        index = int((~sound).argmax())
        raise EngineFault(f"the replica gave logprob = {logprobs[index]:g} at position {index + 1}")
