"""GEM: game-theoretic entropy maximisation, a loss that spares the distribution's other likely tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.distributions import expectation, label_log_prob, logits_of
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.numerics import log_softmax, sigmoid, stop_gradient

_STEEPNESS = 0.01
"""Of the sigmoid in h, the authors' constant."""


class GemParams(Params):
    """Parameters of `gem`; defaults are those of the authors' training script."""

    beta: float = Field(0.7, ge=0.01, le=100)
    """Temperature of q: below 1 it is sharper than the student itself."""
    h: Literal["linear", "logsigmoid"] = "logsigmoid"
    """How a competing token counts: `linear` all alike; `logsigmoid` more, the more its logit exceeds the label's.
    `logsigmoid` is the authors' training script's; the default of their code is `linear`."""


def gem(inputs: Inputs, params: GemParams, *, xp: Namespace) -> Array:
    """Raise the label against the tokens the student itself would say, without draining the unlikely ones.

    loss_t = -sum_v q(v) h(v) (log p(y_t) - log p(v)),  q = sg(softmax(z / beta)),
    h = 1 (linear) or sg(sigmoid(0.01 (z_v - z_{y_t}))) (logsigmoid)

    q and h are constants, as in the authors' code (both are computed without gradient there). The value may be
    negative; it is 0 in the limit p(y_t) -> 1.
    """
    logits = logits_of(inputs, "student", xp=xp)
    log_p = log_softmax(logits, xp=xp)
    weights = xp.exp(log_softmax(stop_gradient(logits) / params.beta, xp=xp))
    label = label_log_prob(log_p, inputs, xp=xp)[..., None]
    lead = log_p - label  # = z_v - z_y; -inf where v has no probability, and then q(v) = 0
    if params.h == "logsigmoid":
        weights = weights * sigmoid(_STEEPNESS * stop_gradient(lead), xp=xp)
    return expectation(weights, lead, xp=xp)


GEM = Method(
    name="gem",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="loss_t = -sum_v q(v) h(v) (log p(y_t) - log p(v)), q = sg(softmax(z / beta))",
    citation="GEM, arXiv 2408.16673",
    verified="authors' code",
    params=GemParams,
    signals=(),
    distributions=("student",),
    loss=gem,
)
