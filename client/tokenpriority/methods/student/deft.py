"""Powers of the probability whose exponent is set by the model's own confidence: DEFT and its Cayley variant.

Both losses are (1 - p^alpha) / (alpha + eps) with a constant alpha per token, so both weights are
alpha / (alpha + eps) p^alpha, the eps being the authors'.
"""

from __future__ import annotations

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.scope import mean
from tokenpriority.methods.student.source import StudentParams

_FLOOR_SHARE = 0.5
_LEAST_ALPHA = 0.001


class DeftParams(StudentParams):
    """Parameters of `deft`. No server gives the collision probability it reads: a reference must be a local copy."""


class CayleyParams(StudentParams):
    """Parameters of `cayley`; its constants are the authors'."""


def _power(logprob: Array, alpha: Array, eps: float, *, xp: Namespace) -> Array:
    """The gradient's weight of (1 - p^alpha) / (alpha + eps), alpha constant."""
    return alpha / (alpha + eps) * xp.exp(alpha * logprob)


def deft(inputs: Inputs, params: DeftParams, *, xp: Namespace) -> Array:
    """Weight each token by a power of its probability, sharper where the model is sure of its next token.

    alpha_t = sg(sum_v p(v)^2), the probability that two draws agree
    w_t = alpha / (alpha + 1e-6) p^alpha, the gradient of the loss (1 - p^alpha) / (alpha + 1e-6)

    Near plain SFT (alpha = 1/V) where the distribution is flat, DFT (alpha = 1) where it is certain.
    """
    evidence = inputs.evidence(params.source)
    return _power(evidence.logprob, evidence.signal("collision"), 1e-6, xp=xp)


def cayley(inputs: Inputs, params: CayleyParams, *, xp: Namespace) -> Array:
    """Weight each token by a power of its probability, sharper for likely tokens and for batches the model knows.

    alpha_t = f + (1 - f) p / (2 - p), clamped to [0.001, 1], with f = 0.5 mean of p over the micro-batch
    w_t = alpha / (alpha + 1e-8) p^alpha, the gradient of the loss (1 - p^alpha) / (alpha + 1e-8), alpha constant

    p / (2 - p) is the authors' (1 - d) / (1 + d) with d = 1 - p; the 1e-8 they add to d and to a divisor that is at
    least 1 are left out.
    """
    logprob = inputs.evidence(params.source).logprob
    p = xp.exp(logprob)
    floor = _FLOOR_SHARE * mean(p, inputs.mask, axis=None, xp=xp)
    alpha = xp.clip(floor + (1 - floor) * p / (2 - p), _LEAST_ALPHA, 1.0)
    return _power(logprob, alpha, 1e-8, xp=xp)


DEFT = Method(
    name="deft",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = a/(a + 1e-6) p^a, a = sum_v p(v)^2",
    citation="DEFT, arXiv 2602.11424",
    verified="authors' code",
    params=DeftParams,
    signals=("logprob", "collision"),
    formula=deft,
)

CAYLEY = Method(
    name="cayley",
    version=1,
    sign="positive",
    roles=("student",),
    scope="batch",
    denominator="all",
    equation="w_t = a/(a + 1e-8) p^a, a = f + (1 - f) p/(2 - p), f = 0.5 mean(p)",
    citation="DEFT (Cayley transform), arXiv 2602.11424",
    verified="authors' code",
    params=CayleyParams,
    formula=cayley,
)
