"""ASFT: DFT anchored to the frozen reference by a KL term over the whole vocabulary."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.distributions import expectation, label_log_prob, log_probs
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.numerics import stop_gradient


class AsftParams(Params):
    """Parameters of `asft`; the default is that of the authors' recipes (0.1 in their and others' code)."""

    kl: float = Field(0.05, ge=0, le=100)
    """lambda, the weight of the divergence."""


def asft(inputs: Inputs, params: AsftParams, *, xp: Namespace) -> Array:
    """Weight each token by its own probability and hold the student near the frozen reference.

    loss_t = -sg(p(y_t)) log p(y_t) + kl sum_v q(v) (log q(v) - log p(v))

    The divergence is from the reference to the student, KL(q || p). The authors take a masked mean of each term; both
    have the same denominator, so the mean of the sum is theirs.
    """
    log_p = log_probs(inputs, "student", xp=xp)
    log_q = log_probs(inputs, "reference", xp=xp)
    label = label_log_prob(log_p, inputs, xp=xp)
    possible = log_q > -xp.inf
    zero = xp.zeros_like(log_q)
    # Both may be -inf where q(v) = 0, and their difference NaN.
    gap = xp.where(possible, log_q, zero) - xp.where(possible, log_p, zero)
    return -xp.exp(stop_gradient(label)) * label + params.kl * expectation(xp.exp(log_q), gap, xp=xp)


ASFT = Method(
    name="asft",
    version=1,
    sign="positive",
    roles=("student", "reference"),
    scope="token",
    denominator="all",
    equation="loss_t = -sg(p(y_t)) log p(y_t) + kl KL(q || p)",
    citation="ASFT, arXiv 2509.23753",
    verified="authors' code",
    params=AsftParams,
    signals=(),
    distributions=("student", "reference"),
    loss=asft,
)
