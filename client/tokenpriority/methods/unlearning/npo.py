"""Negative preference optimisation: a whole sequence is pushed down until it is unlikely enough (NPO, SimNPO)."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.numerics import sigmoid
from tokenpriority.methods.scope import count, mean, total
from tokenpriority.methods.student.source import StudentParams
from tokenpriority.methods.unlearning.forget import ForgetParams, forgotten, signed


class NpoParams(ForgetParams):
    """Parameters of `npo`."""

    beta: float = Field(0.1, gt=0, le=100)
    """Sharpness per nat of the sequence's summed log-ratio: 0.1 in open-unlearning, 0.5 in G-effect."""


class SimNpoParams(ForgetParams, StudentParams):
    """Parameters of `simnpo`. Open-unlearning has gamma 0.125 beside alpha 1: retain 8 here where as many sequences are
    forgotten as retained, else 8 n_forgotten / n_retained."""

    beta: float = Field(2.5, gt=0, le=100)
    """Sharpness per nat of the sequence's mean NLL: 2.5 in the authors' repository, 4.5 in open-unlearning."""
    delta: float = Field(0.0, ge=-1000, le=1000)
    """Mean NLL, nats, at which the push has fallen to half."""


def npo(inputs: Inputs, params: NpoParams, *, xp: Namespace) -> Array:
    """Push a sequence down until it is less likely than under the reference, all its tokens alike.

    loss = -(2 / beta) mean over sequences of log sigmoid(beta d),  d = sum_t log q(y_t) - log p(y_t)
    w_t = d loss / d nll_t = -2 sigmoid(-beta d), d a constant

    The sum runs over the forgotten tokens and is not divided by their number: the longer the sequence, the sooner
    the push ends. At d = 0 the weight is -1, that of `ga`. A label's size scales the weight and not the sum. Both
    signs are divided by the number of sequences; a sequence's retained tokens share the weight `retain`.
    """
    gap = inputs.evidence("reference").logprob - inputs.evidence("student").logprob
    distance = total(gap, forgotten(inputs, params, xp=xp), xp=xp)
    push = 2 * sigmoid(-params.beta * distance, xp=xp)
    return signed(xp.broadcast_to(push, gap.shape), inputs, params, each="sequence", xp=xp)


def simnpo(inputs: Inputs, params: SimNpoParams, *, xp: Namespace) -> Array:
    """Push a sequence down until its mean NLL is high enough, whatever its length and without a reference.

    loss = -(2 / beta) mean over sequences of log sigmoid(beta (m - delta)),  m = sum_t nll_t / n
    w_t = d loss / d nll_t = -2 sigmoid(-beta (m - delta)) / n, m a constant

    n counts the forgotten tokens of the sequence. Both signs are divided by the number of sequences; a sequence's
    retained tokens share the weight `retain`. The open-unlearning code divides by the count of labels before the
    shift, one more than it sums where the first token has a label; here n counts what is summed.
    """
    nll = -inputs.evidence(params.source).logprob
    down = forgotten(inputs, params, xp=xp)
    number = xp.astype(count(down, xp=xp), nll.dtype)
    margin = mean(nll, down, xp=xp) - params.delta
    push = 2 * sigmoid(-params.beta * margin, xp=xp) / xp.maximum(number, xp.ones_like(number))
    return signed(xp.broadcast_to(push, nll.shape), inputs, params, each="sequence", xp=xp)


NPO = Method(
    name="npo",
    version=1,
    sign="signed",
    roles=("student", "reference"),
    scope="sequence",
    denominator="sequences",
    equation="w_t = -2 sigmoid(-beta sum_t(log q(y_t) - log p(y_t)))",
    citation="NPO, arXiv 2404.05868",
    verified="third-party code",
    params=NpoParams,
    formula=npo,
    negatives="ascent",
    labels="inside",
)

SIMNPO = Method(
    name="simnpo",
    version=1,
    sign="signed",
    roles=("student",),
    scope="sequence",
    denominator="sequences",
    equation="w_t = -2 sigmoid(-beta (mean_t(-log p(y_t)) - delta)) / n",
    citation="SimNPO, arXiv 2410.07163",
    verified="authors' code",
    params=SimNpoParams,
    formula=simnpo,
    negatives="ascent",
    labels="inside",
)
