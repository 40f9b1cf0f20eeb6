"""How many optimiser steps an epoch has.

Knows how Trainer counts them. Knows nothing of schedules or weights.
"""

from __future__ import annotations

from typing import Any


def epoch_steps(loader: Any, accumulation: int) -> int | None:
    """Optimiser steps per epoch of a data loader, None if its length is not known.

    Every epoch has as many, whatever `max_steps`, so that a step's place in its epoch is the step modulo this.
    """
    try:
        batches = len(loader)
    except TypeError:
        return None
    return max(1, -(-batches // accumulation))
