"""RFT: reasoning and boilerplate, as SHAD tells them apart, balanced by the student's live losses."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.frozen.shad import is_boilerplate
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.numerics import sigmoid
from tokenpriority.methods.scope import count, mean


class RftParams(Params):
    """Parameters of `rft`."""

    tau: float = Field(ge=1e-6)
    """Temperature of the softmax over the two groups' mean losses, nats; required, since no published value is
    verified."""


def rft(inputs: Inputs, params: RftParams, *, xp: Namespace) -> Array:
    """Balance the mean losses of boilerplate and of reasoning by a softmax of the two, so that the worse one leads.

    loss = omega_b L_b + omega_r L_r,  (omega_b, omega_r) = softmax((L_b, L_r) / tau)
    w_t = omega_g N / n_g for a token of group g

    L_g is the student's mean NLL over the n_g tokens of a group and N = n_b + n_r, all within the micro-batch; omega is
    a constant. The roles reference and base group the tokens, as in `shad`. Where a group is empty the other has omega
    = 1 and the loss is the plain mean (ours: the softmax is of two losses).
    """
    boilerplate = inputs.mask & is_boilerplate(inputs, params, xp=xp)
    reasoning = inputs.mask & ~boilerplate
    nll = -inputs.evidence("student").logprob
    lead = mean(nll, reasoning, axis=None, xp=xp) - mean(nll, boilerplate, axis=None, xp=xp)
    number_b = xp.astype(count(boilerplate, axis=None, xp=xp), nll.dtype)
    number_r = xp.astype(count(reasoning, axis=None, xp=xp), nll.dtype)
    alone = (number_b == 0) | (number_r == 0)
    one = xp.ones_like(lead)
    omega_b = xp.where(alone, one, sigmoid(-lead / params.tau, xp=xp))
    omega_r = xp.where(alone, one, sigmoid(lead / params.tau, xp=xp))
    number = number_b + number_r
    weight_b = omega_b * number / xp.maximum(number_b, one)
    weight_r = omega_r * number / xp.maximum(number_r, one)
    return xp.where(boilerplate, weight_b, weight_r)


RFT = Method(
    name="rft",
    version=1,
    sign="positive",
    roles=("reference", "base", "student"),
    scope="batch",
    denominator="all",
    equation="w_t = omega_g N / n_g, omega = softmax((L_boilerplate, L_reasoning) / tau)",
    citation="RFT, arXiv 2412.14780",
    verified="second-hand",
    params=RftParams,
    formula=rft,
)
