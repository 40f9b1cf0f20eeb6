"""EAFT: tokens the model is sure of, rightly or wrongly, count for less than those it is undecided about."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.student.source import StudentParams

_SCALE = 3.0
"""Nats; the authors' round number for log 20, the greatest entropy of 20 tokens."""


class EaftParams(StudentParams):
    """Parameters of `eaft`; defaults are the authors'."""

    alpha: float = Field(1.0, gt=0, le=20)
    """Exponent."""
    entropy: Literal["top20", "full"] = "top20"
    """Entropy of the 20 likeliest tokens renormalised among themselves, or of the full vocabulary. The divisor is 3
    nats for both, so that full-vocabulary weights can exceed 1, up to (log(V) / 3)^alpha."""

    def signals(self) -> tuple[str, ...]:
        """The entropy that is read."""
        return ("entropy_top20",) if self.entropy == "top20" else ("entropy",)


def eaft(inputs: Inputs, params: EaftParams, *, xp: Namespace) -> Array:
    """Weight each token by the entropy of its prediction.

    w_t = (H / 3)^alpha, H in nats over the 20 likeliest tokens, constant; below 1, since log 20 = 2.996
    """
    entropy = inputs.evidence(params.source).signal(params.signals()[0])
    positive = xp.maximum(entropy, xp.zeros_like(entropy))  # rounding may leave it just below 0
    return (positive / _SCALE) ** params.alpha


EAFT = Method(
    name="eaft",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = (H_top20 / 3)^alpha",
    citation="EAFT, arXiv 2601.02151",
    verified="third-party code",
    params=EaftParams,
    signals=("entropy_top20",),
    formula=eaft,
)
