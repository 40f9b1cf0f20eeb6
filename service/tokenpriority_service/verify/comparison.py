"""What is compared with what, and when they agree.

Knows errors, tolerances and verdicts. Knows nothing of how numbers came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenpriority.evidence import ENGINE_SIGNALS
from tokenpriority_service.verify.plain import Plain


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Errors that always agree, in nats (of masses: in probability)."""

    greatest: float
    mean: float
    wrong_ranks: float
    """Share of positions whose rank may lie outside of what the window allows."""


TOLERANCES = {
    "float32": Tolerance(1e-4, 1e-5, 0.0),
    "float16": Tolerance(0.03, 3e-3, 0.01),
    "bfloat16": Tolerance(0.25, 0.025, 0.01),
}

SLACK = 2.0
"""Errors up to so many times those of transformers in the same dtype agree too: what the dtype costs this model."""


def window(dtype: str) -> float:
    """Distance of two logits below which rounding may swap them: each may be wrong by the tolerance."""
    return 2 * TOLERANCES[dtype].greatest


@dataclass(frozen=True, slots=True)
class SignalError:
    """One signal of one path. Of `rank`, `mean` is the share of positions with a wrong rank and `greatest` is by how
    much; it is not judged."""

    signal: str
    greatest: float
    mean: float
    allowed_greatest: float
    allowed_mean: float

    @property
    def agrees(self) -> bool:
        """Whether both errors are allowed; NaN never is."""
        return bool(self.mean <= self.allowed_mean and self.greatest <= self.allowed_greatest)


def compare(
    values: np.ndarray[Any, Any], signals: tuple[str, ...], truth: Plain, dtype: str, yardstick: list[SignalError]
) -> list[SignalError]:
    """The error of each of `signals`, rows of `values` [6 or 7, N], against the truth.

    `yardstick` holds the errors of transformers in the same dtype; empty if there are none.
    """
    tolerance = TOLERANCES[dtype]
    of_plain = {each.signal: each for each in yardstick}
    errors = []
    for row, signal in enumerate(ENGINE_SIGNALS):
        if signal not in signals:
            continue
        given = values[row].astype(np.float64)
        off = np.maximum(np.maximum(truth.low[row] - given, given - truth.high[row]), 0.0)
        off = np.where(np.isnan(given), np.inf, off)
        ranks = signal == "rank"
        greatest, mean = float(off.max()), float((off > 0).mean() if ranks else off.mean())
        plain = of_plain.get(signal)
        allowed = np.inf if ranks else max(tolerance.greatest, SLACK * plain.greatest if plain else 0.0)
        usual = tolerance.wrong_ranks if ranks else tolerance.mean
        errors.append(
            SignalError(signal, greatest, mean, float(allowed), max(usual, SLACK * plain.mean if plain else 0.0))
        )
    return errors
