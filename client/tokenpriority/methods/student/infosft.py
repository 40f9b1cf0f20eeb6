"""InfoSFT: tokens of middling probability count most; those the model has learnt count nothing."""

from __future__ import annotations

import math

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.numerics import log_complement
from tokenpriority.methods.student.source import StudentParams


class InfoSftParams(StudentParams):
    """Parameters of `infosft`; the default is the authors'."""

    learnt: float = Field(0.93, gt=0.5, lt=1)
    """The authors' P: the probability from which a token counts as learnt and has weight 0."""


def infosft(inputs: Inputs, params: InfoSftParams, *, xp: Namespace) -> Array:
    """Weight each token by its probability times how far its logit is below that of a learnt token.

    w_t = p max(0, 1 - logit(p) / logit(P)), logit(x) = log x - log(1 - x), constant; 0 for p >= P

    The logit is computed only below P, where it is finite: at p = 1 it is infinite, and a rounded log p above 0 would
    make it NaN.
    """
    logprob = inputs.evidence(params.source).logprob
    open_ = logprob < math.log(params.learnt)
    below = xp.where(open_, logprob, xp.full_like(logprob, math.log(0.5)))
    logit = below - log_complement(below, xp=xp)
    weight = xp.exp(below) * (1 - logit / math.log(params.learnt / (1 - params.learnt)))
    # Just below P rounding may leave the difference just below 0.
    return xp.where(open_ & (weight > 0), weight, xp.zeros_like(weight))


INFOSFT = Method(
    name="infosft",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = p max(0, 1 - logit(p)/logit(P))",
    citation="InfoSFT, arXiv 2605.14967",
    verified="authors' code",
    params=InfoSftParams,
    formula=infosft,
)
