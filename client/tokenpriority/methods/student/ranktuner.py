"""RankTuner: a token's probability held against the rank its position's entropy lets one expect."""

from __future__ import annotations

import math
from typing import Literal

from tokenpriority.arrays import Array, Namespace
from tokenpriority.evidence import Evidence
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.student.source import StudentParams

_LEAST = math.log(1e-6)
"""The code's floor under p s(H): it bounds S by 1e6."""


class RankTunerParams(StudentParams):
    """Parameters of `ranktuner`; the default is the authors' for mathematics."""

    weight: Literal["p", "one"] = "p"
    """w0, what the scale multiplies: the token's probability, or 1 (the authors' choice outside mathematics)."""


def _expected_rank(evidence: Evidence, *, xp: Namespace) -> Array:
    """s(H): a lower bound of the mean rank of a token drawn from the distribution.

    2^H / 4 + 1 holds from 2 bits on (Massey's bound on guessing); below, 1 + (1 - max_v p(v)) holds always.
    """
    nats = evidence.signal("entropy")
    return xp.where(nats >= 2 * math.log(2), xp.exp(nats) / 4 + 1, 2 - xp.exp(evidence.signal("top1_logprob")))


def ranktuner(inputs: Inputs, params: RankTunerParams, *, xp: Namespace) -> Array:
    """Weight each token by how much less likely it is than the entropy of its position explains.

    w_t = w0 S, S = max(p s(H), 1e-6)^(-K), K = log2(xi + 1)^(-2), xi = max(R, s(H)), all constant
    s(H) = 2^H / 4 + 1, H in bits, from 2 bits on; 2 - max_v p(v) below

    The practical form: the exact one needs the mean rank itself. R here counts the tokens likelier than the label, plus
    one; the authors' R counts those tied with the label too. In log space, so that p -> 0 stays finite.
    """
    evidence = inputs.evidence(params.source)
    logprob = evidence.logprob
    expected = _expected_rank(evidence, xp=xp)
    exponent = xp.log2(xp.maximum(evidence.signal("rank"), expected) + 1) ** -2
    against = xp.maximum(logprob + xp.log(expected), xp.full_like(logprob, _LEAST))
    start = logprob if params.weight == "p" else xp.zeros_like(logprob)
    return xp.exp(start - exponent * against)


RANKTUNER = Method(
    name="ranktuner",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = w0 (p s(H))^(-K), K = log2(max(R, s(H)) + 1)^-2",
    citation="RankTuner, arXiv 2602.01745",
    verified="third-party code",
    params=RankTunerParams,
    signals=("logprob", "entropy", "rank", "top1_logprob"),
    formula=ranktuner,
)
