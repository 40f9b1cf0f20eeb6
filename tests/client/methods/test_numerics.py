"""What the array API leaves out, at the ends of its range."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tokenpriority.methods.numerics import log_complement


def complement(logprob: float) -> float:
    """log(1 - p) by whichever series of p or of -log p converges fast, in double precision."""
    small = -logprob
    if small < 1e-3:  # 1 - p = small - small^2 / 2 + small^3 / 6 - ...
        return math.log(small) + math.log1p(-small / 2 + small**2 / 6 - small**3 / 24)
    p = math.exp(logprob)
    return -math.fsum(p**k / k for k in range(1, 60)) if p < 0.5 else math.log(-math.expm1(logprob))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 4e-15), (np.float32, 4e-7)])
@pytest.mark.parametrize("logprob", [-50.0, -9.0, -1.0, -0.69, -0.1, -1e-3, -1e-6, -1e-12])
def test_log_complement_is_exact_at_both_ends(logprob: float, dtype: type, tolerance: float) -> None:
    values: np.ndarray = np.array([logprob], dtype)
    given = float(values[0])
    got = log_complement(values, xp=np)
    assert got.dtype == dtype
    assert float(got[0]) == pytest.approx(complement(given), rel=tolerance, abs=0)
