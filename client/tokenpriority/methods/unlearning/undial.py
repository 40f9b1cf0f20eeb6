"""UNDIAL: self-distillation from the frozen reference with the label's logit turned down."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.distributions import cross_entropy, is_label, log_probs
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.numerics import log_softmax
from tokenpriority.methods.unlearning.forget import ForgetParams, signed_loss


class UndialParams(ForgetParams):
    """Parameters of `undial`; the default is that of open-unlearning's configuration (1 in its class)."""

    beta: float = Field(10.0, ge=0, le=10_000)
    """By how much the label's logit is lowered."""


def undial(inputs: Inputs, params: UndialParams, *, xp: Namespace) -> Array:
    """Teach the student what the frozen reference would say if the label were beta nats less likely.

    loss_t = -sum_v t(v) log p(v),  t = softmax(z_ref - beta 1[v = y_t]), for tokens to be forgotten;
    loss_t = -retain log p(y_t) for the others; each times the token's |label|.

    A bounded target: training ends where the student says t. The code it is taken from averages over all positions,
    prompt and padding too, where a label of -100 lowers some other token; here only scored tokens count.
    """
    log_p = log_probs(inputs, "student", xp=xp)
    log_q = log_probs(inputs, "reference", xp=xp)
    label = is_label(log_q, inputs, xp=xp)
    target = log_softmax(xp.where(label, log_q - params.beta, log_q), xp=xp)
    push = cross_entropy(target, log_p, xp=xp)
    return signed_loss(push, log_p, inputs, params, xp=xp)


UNDIAL = Method(
    name="undial",
    version=1,
    sign="signed",
    roles=("student", "reference"),
    scope="token",
    denominator="all",
    equation="loss_t = -sum_v t(v) log p(v), t = softmax(z_ref - beta 1[v = y_t])",
    citation="UNDIAL, arXiv 2402.10052",
    verified="third-party code",
    params=UndialParams,
    signals=(),
    distributions=("student", "reference"),
    loss=undial,
    labels="inside",
)
