"""The ramp: a factor on negative weights that runs linearly over the optimiser steps of a run.

Knows which ramps there can be, the default one and how far a run is along it. Imports nothing heavy. Knows nothing of
weights; `loss.ramped` applies the factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Ramp = tuple[float, float]
"""The factor at the first and at the last optimiser step of the run."""

ASCENT_RAMP: Ramp = (0.0, 0.25)
"""Under gradient ascent where neither caller nor method names one: Forgetting's (arXiv 2508.04329)."""

LIMIT = "must be two finite numbers >= 0, not both 0"


def is_ramp(values: Sequence[object]) -> bool:
    """Whether these values keep to LIMIT: a negative factor would turn unlearning into learning, 0 to 0 drop it."""
    return len(values) == 2 and all(map(_is_factor, values)) and any(values)


def progress(step: int, steps: int) -> float:
    """How far optimiser step number `step` (from 0) of `steps` is along the ramp: 0 at the first, 1 at the last.

    A run of a single step is at the ramp's first value.
    """
    return step / max(1, steps - 1)


def _is_factor(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]
