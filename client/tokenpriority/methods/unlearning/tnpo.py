"""NPO's weight given to each token by itself: TNPO, and WTNPO, which fades further by the token's probability."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.unlearning.forget import ForgetParams, signed

_FLOOR = 1e-5
"""The authors' guard of the quotient, for p and q that both vanish."""


class TnpoParams(ForgetParams):
    """Parameters of `tnpo`; the default is the authors'."""

    beta: float = Field(4.0, gt=0, le=100)
    """Power of both probabilities: sharpness of the comparison."""


class WtnpoParams(TnpoParams):
    """Parameters of `wtnpo`; defaults are the authors'."""

    alpha: float = Field(1.5, ge=0, le=100)
    """Further power of the student's probability; 0 is `tnpo`."""


def tnpo(inputs: Inputs, params: TnpoParams, *, xp: Namespace) -> Array:
    """Push a token down while the student holds it likelier than the reference does.

    loss = -mean(sg(2 p^beta / (p^beta + q^beta + 1e-5)) nll), so w_t = -2 p^beta / (p^beta + q^beta + 1e-5)

    But for 1e-5 this is NPO's weight with the sum over a single token. Where p is small the 1e-5 outweighs it: at
    beta 4 the weight is already halved at p = q = 0.047, and a token unlikely under both models is left alone.
    """
    return signed(_push(inputs, params.beta, 0.0, xp), inputs, params, xp=xp)


def wtnpo(inputs: Inputs, params: WtnpoParams, *, xp: Namespace) -> Array:
    """Push a token down while the student holds it likelier than the reference does, less the unlikelier it is.

    loss = -mean(sg(2 p^(beta + alpha) / (p^beta + q^beta + 1e-5)) nll); w_t is the negative of that factor

    It is the weight of `tnpo` times p^alpha, the weight of `wga`.
    """
    return signed(_push(inputs, params.beta, params.alpha, xp), inputs, params, xp=xp)


def _push(inputs: Inputs, beta: float, alpha: float, xp: Namespace) -> Array:
    """2 p^(beta + alpha) / (p^beta + q^beta + 1e-5); each power by its exponent, so that underflow gives 0."""
    student, reference = inputs.evidence("student").logprob, inputs.evidence("reference").logprob
    powers = xp.exp(beta * student) + xp.exp(beta * reference)
    return 2 * xp.exp((beta + alpha) * student) / (powers + _FLOOR)


TNPO = Method(
    name="tnpo",
    version=1,
    sign="signed",
    roles=("student", "reference"),
    scope="token",
    denominator="all",
    equation="w_t = -sg(2 p(y_t)^beta / (p(y_t)^beta + q(y_t)^beta + 1e-5))",
    citation="TNPO (G-effect), arXiv 2502.19301",
    verified="authors' code",
    params=TnpoParams,
    formula=tnpo,
    negatives="ascent",
    labels="inside",
)

WTNPO = Method(
    name="wtnpo",
    version=1,
    sign="signed",
    roles=("student", "reference"),
    scope="token",
    denominator="all",
    equation="w_t = -sg(2 p(y_t)^(beta + alpha) / (p(y_t)^beta + q(y_t)^beta + 1e-5))",
    citation="WTNPO (G-effect), arXiv 2502.19301",
    verified="authors' code",
    params=WtnpoParams,
    formula=wtnpo,
    negatives="ascent",
    labels="inside",
)
