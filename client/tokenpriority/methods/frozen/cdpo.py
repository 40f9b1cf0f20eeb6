"""cDPO's token weights: how much a model of right answers, held against one of wrong answers, likes a token."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.distributions import label_log_prob, logits_of
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.numerics import log_softmax


class CdpoParams(Params):
    """Parameters of `cdpo`; defaults are the authors'."""

    side: Literal["rejected", "chosen"] = "rejected"
    """Which answers of the preference pairs the sequences are."""
    weigh_chosen: bool = False
    """Weigh chosen answers by s_t instead of 1 (the authors' `only_neg=False`); side "chosen" only."""
    contrast: float = Field(1.0, ge=0, le=100)
    """c, how far the positive model's logits are moved away from the negative model's."""

    @model_validator(mode="after")
    def _weight_goes_with_chosen(self) -> Self:
        if self.side == "rejected" and self.weigh_chosen:
            raise ValueError('weigh_chosen goes with side "chosen" only')
        return self


def cdpo(inputs: Inputs, params: CdpoParams, *, xp: Namespace) -> Array:
    """Push down the critical tokens of wrong answers: those a contrast of two frozen models finds unlikely.

    s_t = softmax((1 + c) z_ref - c z_base)[y_t], with c = 1 softmax(2 z_ref - z_base)[y_t]
    w_t = -(1 - s_t) for a rejected answer; 1, or s_t with `weigh_chosen`, for a chosen one

    Reference: the model tuned on right answers; base: the one tuned on wrong ones. |w_t| is the authors' weight; the
    sign is that of the log-prob in their DPO margin, -log sigmoid(beta (chosen - rejected)). Their code takes that per
    aligned position of the two answers and then the mean over the padded matrix, in which prompt and padding add log 2
    each, instead of one margin of the sums as in DPO; neither is done here, where the weights act on the NLL. It also
    shifts the weights by one token for models named Qwen, which is left out.
    """
    positive = logits_of(inputs, "reference", xp=xp)
    if params.side == "chosen" and not params.weigh_chosen:
        return xp.ones_like(positive[..., 0])
    negative = logits_of(inputs, "base", xp=xp)
    possible = positive != -xp.inf  # a NaN is no such thing, and has to stay one
    zero = xp.zeros_like(positive)
    # What the positive model cannot say stays impossible; -inf minus -inf would be NaN.
    moved = xp.where(possible, positive, zero) - xp.where(possible, negative, zero)
    contrast = xp.where(possible, positive + params.contrast * moved, xp.full_like(positive, -xp.inf))
    log_s = label_log_prob(log_softmax(contrast, xp=xp), inputs, xp=xp)
    return xp.exp(log_s) if params.side == "chosen" else xp.expm1(log_s)


CDPO = Method(
    name="cdpo",
    version=1,
    sign="signed",
    roles=("reference", "base"),
    scope="token",
    denominator="all",
    equation="w_t = -(1 - softmax(2 z_ref - z_base)[y_t]) for rejected answers, 1 for chosen",
    citation="cDPO (its token weights), arXiv 2411.19943",
    verified="authors' code",
    params=CdpoParams,
    signals=(),
    distributions=("reference", "base"),
    formula=cdpo,
)
