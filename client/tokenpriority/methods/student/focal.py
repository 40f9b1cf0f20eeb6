"""Focal loss for language models: easy tokens count for less, the mean weight is 1."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.numerics import log_complement
from tokenpriority.methods.scope import exp_over_mean
from tokenpriority.methods.student.source import StudentParams


class FocalParams(StudentParams):
    """Parameters of `focal`."""

    gamma: float = Field(1.0, gt=0, le=100)
    """Exponent; 1 in the code and in the training configurations of MiLe's authors."""


def focal(inputs: Inputs, params: FocalParams, *, xp: Namespace) -> Array:
    """Weight each token by how far it is from certain, with a mean weight of 1 over the micro-batch.

    w_t = (1 - p)^gamma / mean over the micro-batch of (1 - p)^gamma, constant

    1 - p is taken without cancellation, and its power in log space, relative to the greatest in the micro-batch: no
    gamma makes all of them underflow. Where every p is 1, to the precision of the dtype, all weights are 0: nothing is
    left to learn. The authors' mean runs over ignored positions too; this one does not.
    """
    logprob = inputs.evidence(params.source).logprob
    certain = logprob >= 0  # rounding may leave a log-prob just above 0
    rest = log_complement(xp.where(certain, xp.full_like(logprob, -1.0), logprob), xp=xp)
    logs = xp.where(certain, xp.full_like(rest, -xp.inf), params.gamma * rest)
    return exp_over_mean(logs, inputs.mask, axis=None, xp=xp)


FOCAL = Method(
    name="focal",
    version=1,
    sign="positive",
    roles=("student",),
    scope="batch",
    denominator="all",
    equation="w_t = (1 - p)^gamma / mean((1 - p)^gamma)",
    citation="Focal loss as in MiLe Loss, arXiv 2310.19531",
    verified="authors' code",
    params=FocalParams,
    formula=focal,
)
