"""Which tokens are to be forgotten, and how the others are held on to: what every unlearning method shares.

Knows the caller's labels as these methods read them and lays the signs and the losses. Knows no method's strength.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.distributions import label_log_prob
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Params
from tokenpriority.methods.scope import count


class ForgetParams(Params):
    """Parameters of every unlearning method."""

    forget: Literal["all", "labelled"] = "all"
    """`all`: every scored token is to be forgotten, and the caller's labels are not read. `labelled`: tokens with a
    negative label are forgotten, |label| times as strongly; the other scored tokens are retained, `label` times as
    strongly where there is one (0 leaves a token out)."""
    retain: float = Field(1.0, ge=0, le=100)
    """Weight of retained tokens; read with forget "labelled" only. Forgotten and retained tokens are divided by one
    count (but in `graddiff`, where it is the authors' alpha). Authors who weigh the two means by gamma and alpha have
    alpha / gamma = retain only where as many tokens (`npo`, `simnpo`: sequences) are forgotten as retained, else
    alpha / gamma = retain * n_retained / n_forgotten."""

    @model_validator(mode="after")
    def _retain_goes_with_labelled(self) -> Self:
        if self.forget == "all" and self.retain != 1:
            raise ValueError('retain goes with forget "labelled" only')
        return self


def forgotten(inputs: Inputs, params: ForgetParams, *, xp: Namespace) -> Array:
    """Boolean of the mask's shape: the scored tokens that are to be forgotten."""
    if params.forget == "all":
        return inputs.mask
    if inputs.labels is None:
        return xp.zeros_like(inputs.mask)
    return inputs.mask & (inputs.labels < 0)  # no label is NaN, which is not below 0


def signed(
    push: Array, inputs: Inputs, params: ForgetParams, *, each: Literal["token", "sequence"] = "token", xp: Namespace
) -> Array:
    """-push where a token is forgotten, +retain where it is not, each times the |label|; push's shape and dtype.

    `push` >= 0 is of the mask's shape. `each` says whose mean the retained NLL is: tokens are divided by the trainer's
    count of tokens; with denominator `sequences` a sequence's retained tokens share its one part, retain / n, so that
    the retained loss is a mean over sequences of each one's mean.
    """
    if params.forget == "all":
        return -push
    one = xp.ones_like(push)
    down = forgotten(inputs, params, xp=xp)
    up = params.retain * one
    if each == "sequence":
        number = xp.astype(count(inputs.mask & ~down, xp=xp), push.dtype)
        up = up / xp.maximum(number, xp.ones_like(number))
    weights = xp.where(down, -push, up)
    if inputs.labels is None:
        return weights
    labels = xp.astype(inputs.labels, push.dtype)
    return weights * xp.where(xp.isnan(labels), one, xp.abs(labels))


def signed_loss(push: Array, log_p: Array, inputs: Inputs, params: ForgetParams, *, xp: Namespace) -> Array:
    """`push` where a token is forgotten, retain times its NLL under `log_p` where not, each times the |label|.

    `push` is of the mask's shape, `log_p` (..., T, V). Where the weight is 0 the loss is, even of an impossible label.
    """
    weights = signed(xp.ones_like(push), inputs, params, xp=xp)
    loss = xp.where(weights < 0, push, -label_log_prob(log_p, inputs, xp=xp))
    counted = weights != 0
    return xp.abs(weights) * xp.where(counted, loss, xp.zeros_like(loss))
