"""Rho-1's selective language modelling: train on the tokens the student has yet to learn and the reference knows."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.scope import best, floor_share


class Rho1Params(Params):
    """Parameters of `rho1`."""

    keep: float = Field(gt=0, le=1)
    """Share k of the micro-batch's scored tokens that is kept; required, since no published value is verified."""


def rho1(inputs: Inputs, params: Rho1Params, *, xp: Namespace) -> Array:
    """Keep the micro-batch's tokens on which the student lags most behind the reference; drop the others.

    s_t = nll_student - nll_reference = log q(y_t) - log p(y_t)
    loss = sum_kept nll / (N k), so w_t = 1 / k for the best floor(n k) scores, else 0

    N counts all valid tokens of the global batch, n those of the micro-batch. The source states the share and no
    rounding; down is ours, as in `token_cleaning`, so a micro-batch of fewer than 1 / k tokens keeps none.
    """
    score = inputs.evidence("reference").logprob - inputs.evidence("student").logprob
    number = floor_share(inputs.mask, params.keep, axis=None, xp=xp)
    kept = best(score, inputs.mask, number, axis=None, xp=xp)
    return xp.where(kept, xp.full_like(score, 1 / params.keep), xp.zeros_like(score))


RHO1 = Method(
    name="rho1",
    version=1,
    sign="positive",
    roles=("student", "reference"),
    scope="batch",
    denominator="all",
    equation="w_t = 1[log q(y_t) - log p(y_t) in the batch's best share k] / k",
    citation="Rho-1, arXiv 2404.07965",
    verified="second-hand",
    params=Rho1Params,
    formula=rho1,
)
