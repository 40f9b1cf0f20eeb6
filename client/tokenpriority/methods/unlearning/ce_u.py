"""CE-U: cross-entropy to the student's own distribution without the label."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.distributions import cross_entropy, is_label, logits_of
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.numerics import log_softmax
from tokenpriority.methods.scope import best
from tokenpriority.methods.unlearning.forget import ForgetParams, signed_loss


class CeUParams(ForgetParams):
    """Parameters of `ce_u`; the default is the authors'."""

    skip: int = Field(1, ge=0)
    """How many scored tokens at the beginning of each sequence are not pushed down."""


def ce_u(inputs: Inputs, params: CeUParams, *, xp: Namespace) -> Array:
    """Teach the student its own distribution with the label made impossible.

    loss_t = -sum_v t(v) log p(v),  t = sg(softmax(z with z_{y_t} = -inf)), for tokens to be forgotten;
    loss_t = -retain log p(y_t) for the others; each times the token's |label|.

    The first `skip` scored tokens of a sequence have loss 0 if they are to be forgotten. They stay in the denominator,
    which counts all scored tokens; the authors leave them out of theirs. There must be another possible token beside
    the label.
    """
    logits = logits_of(inputs, "student", xp=xp)
    log_p = log_softmax(logits, xp=xp)
    label = is_label(logits, inputs, xp=xp)
    others = xp.where(label, xp.full_like(logits, -xp.inf), logits)
    push = cross_entropy(log_softmax(others, xp=xp), log_p, xp=xp)
    none = xp.zeros_like(push)
    push = xp.where(best(none, inputs.mask, params.skip, xp=xp), none, push)  # of equal scores the earlier are best
    return signed_loss(push, log_p, inputs, params, xp=xp)


CE_U = Method(
    name="ce_u",
    version=1,
    sign="signed",
    roles=("student",),
    scope="sequence",
    denominator="all",
    equation="loss_t = -sum_v t(v) log p(v), t = sg(softmax(z with z_{y_t} = -inf))",
    citation="CE-U, arXiv 2503.01224",
    verified="third-party code",
    params=CeUParams,
    signals=(),
    distributions=("student",),
    loss=ce_u,
    labels="inside",
)
