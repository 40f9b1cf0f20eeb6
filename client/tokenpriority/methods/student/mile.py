"""MiLe Loss: positions of high entropy count for more, the mean weight is 1."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.scope import exp_over_mean
from tokenpriority.methods.student.source import StudentParams


class MileParams(StudentParams):
    """Parameters of `mile`; the default is the authors'."""

    gamma: float = Field(1.0, gt=0, le=100)
    """Exponent."""


def mile(inputs: Inputs, params: MileParams, *, xp: Namespace) -> Array:
    """Weight each token by the entropy of its prediction, with a mean weight of 1 over the micro-batch.

    w_t = (1 + H)^gamma / mean over the micro-batch of (1 + H)^gamma, H in nats from the full vocabulary, constant

    Differs from the authors' code in two ways, both towards the paper: the mean leaves ignored positions out, and H is
    exact (their clamp of every p to 1e-8 adds up to V * 1.8e-7 nats). They average 1 / mean over processes; here each
    process has its own. The power is taken in log space, relative to the greatest in the micro-batch, so that no gamma
    overflows.
    """
    entropy = inputs.evidence(params.source).signal("entropy")
    return exp_over_mean(params.gamma * xp.log1p(entropy), inputs.mask, axis=None, xp=xp)


MILE = Method(
    name="mile",
    version=1,
    sign="positive",
    roles=("student",),
    scope="batch",
    denominator="all",
    equation="w_t = (1 + H)^gamma / mean((1 + H)^gamma)",
    citation="MiLe Loss, arXiv 2310.19531",
    verified="authors' code",
    params=MileParams,
    signals=("entropy",),
    formula=mile,
)
