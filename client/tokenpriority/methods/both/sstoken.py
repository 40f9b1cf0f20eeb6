"""ssToken without its attention half: the tokens on which the student has improved most on its own history."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.scope import best, ceil_share


class SsTokenExcessParams(Params):
    """Parameters of `sstoken_excess`; the share is the authors'."""

    keep: float = Field(0.6, gt=0, le=1)
    """Share of each sequence's scored tokens that is kept, rounded up."""


def sstoken_excess(inputs: Inputs, params: SsTokenExcessParams, *, xp: Namespace) -> Array:
    """Keep each sequence's tokens on which the student improves most on its history; ssToken without attention.

    s_t = nll_history - nll_student;  w_t = 1[s_t among the best ceil(n * keep) of the sequence]

    The role reference is the history model: the student as it was before training. ssToken ranks by
    gamma minmax(s_t) + (1 - gamma) attention_t with gamma = 0.5; this is gamma = 1, a part of the method and not the
    method its results are of. The min-max over the sequence, which only makes s_t comparable with attention, keeps the
    order and is left out. The prompt is what the mask says, not the authors' count of ignored labels.
    """
    score = inputs.evidence("student").logprob - inputs.evidence("reference").logprob
    kept = best(score, inputs.mask, ceil_share(inputs.mask, params.keep, xp=xp), xp=xp)
    return xp.where(kept, xp.ones_like(score), xp.zeros_like(score))


SSTOKEN_EXCESS = Method(
    name="sstoken_excess",
    version=1,
    sign="positive",
    roles=("student", "reference"),
    scope="sequence",
    denominator="kept",
    equation="w_t = 1[log p(y_t) - log p_history(y_t) in the sequence's best share]",
    citation="ssToken (its loss half alone), arXiv 2510.18250",
    verified="authors' code",
    params=SsTokenExcessParams,
    formula=sstoken_excess,
)
