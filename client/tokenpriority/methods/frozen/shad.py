"""SHAD: telling boilerplate from reasoning by what a model can still predict after learning from shuffled answers."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.frozen.excess import excess
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, PairParams, Params


class ShadParams(PairParams):
    """Parameters of `shad`."""

    boilerplate: float = Field(ge=0, le=100)
    """Weight of boilerplate; required, since the published weights are live ones (`rft`)."""
    reasoning: float = Field(1.0, ge=0, le=100)
    """Weight of reasoning."""

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if self.boilerplate == 0 and self.reasoning == 0:
            raise ValueError("boilerplate and reasoning cannot both be 0: no token would count")
        return self


def is_boilerplate(inputs: Inputs, params: Params, *, xp: Namespace) -> Array:
    """Boolean of the mask's shape: where the loss difference LD_t = nll_ref - nll_base is not above 0.

    Reference: the model tuned on a sample of the data with the answers dealt to other questions. Base: the model before
    that. What needs no question to be predicted, such as the output format, the reference predicts no worse.
    """
    return excess(inputs, params, xp=xp) >= 0


def shad(inputs: Inputs, params: ShadParams, *, xp: Namespace) -> Array:
    """Weigh boilerplate and reasoning, told apart by a model tuned on shuffled answers, by one number each.

    w_t = boilerplate where log p_ref(y_t) - log p_base(y_t) >= 0, else reasoning

    Reference: the model tuned on shuffled pairs of question and answer. Base: the model before that. The grouping is
    the published one; the fixed weights are ours, for use without a live student. `rft` has the published weights.
    """
    grouped = is_boilerplate(inputs, params, xp=xp)
    one = xp.ones_like(inputs.evidence("reference").logprob)
    return xp.where(grouped, one * params.boilerplate, one * params.reasoning)


SHAD = Method(
    name="shad",
    version=1,
    sign="positive",
    roles=("reference", "base"),
    scope="token",
    denominator="all",
    equation="w_t = boilerplate if log p_ref(y_t) >= log p_base(y_t), else reasoning",
    citation="SHAD (grouping of RFT, with fixed weights), arXiv 2412.14780",
    verified="second-hand",
    params=ShadParams,
    formula=shad,
)
