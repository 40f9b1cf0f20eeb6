"""Ascent that fades as the token is unlearnt, by the student's own confidence: WGA and SatImp."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.student.source import StudentParams
from tokenpriority.methods.unlearning.forget import ForgetParams, signed


class WgaParams(ForgetParams, StudentParams):
    """Parameters of `wga`."""

    beta: float = Field(5.0, ge=0, le=100)
    """Power of the probability: 5 in the authors' G-effect, 1 in open-unlearning; 0 is `ga`."""


class SatImpParams(ForgetParams, StudentParams):
    """Parameters of `satimp`; the betas are open-unlearning's class defaults. Its recipe has gamma 0.1 and alpha 1:
    retain 10 here where as many tokens are forgotten as retained, else 10 n_forgotten / n_retained."""

    beta1: float = Field(5.0, ge=0, le=100)
    """Power of p, saturation: what is unlearnt already is left alone."""
    beta2: float = Field(1.0, ge=0, le=100)
    """Power of 1 - p, importance: what the model is certain of is spared."""


def wga(inputs: Inputs, params: WgaParams, *, xp: Namespace) -> Array:
    """Weighted gradient ascent: push a token down by a power of its probability, so that the push ends.

    loss = -mean(sg(p^beta) nll), so w_t = -p^beta

    At p = 1 the weight is -1; far down it underflows to 0, and the token still counts in the denominator.
    """
    logprob = inputs.evidence(params.source).logprob
    return signed(xp.exp(params.beta * logprob), inputs, params, xp=xp)


def satimp(inputs: Inputs, params: SatImpParams, *, xp: Namespace) -> Array:
    """Push down most the tokens that are neither unlearnt already nor certain.

    loss = -mean(sg(p^beta1 (1 - p)^beta2) nll), so w_t = -p^beta1 (1 - p)^beta2

    At p = 1 the weight is 0 (-1 if beta2 = 0): a token the model is certain of is not forgotten. 1 - p is
    -expm1(log p), exact near p = 1, where the authors' 1 - exp(log p) cancels.
    """
    logprob = inputs.evidence(params.source).logprob
    rest = -xp.expm1(xp.minimum(logprob, xp.zeros_like(logprob)))  # log p may round to just above 0
    return signed(xp.exp(params.beta1 * logprob) * rest**params.beta2, inputs, params, xp=xp)


WGA = Method(
    name="wga",
    version=1,
    sign="signed",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = -sg(p(y_t)^beta)",
    citation="WGA (G-effect), arXiv 2502.19301",
    verified="authors' code",
    params=WgaParams,
    formula=wga,
    negatives="ascent",
    labels="inside",
)

SATIMP = Method(
    name="satimp",
    version=1,
    sign="signed",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = -sg(p(y_t)^beta1 (1 - p(y_t))^beta2)",
    citation="SatImp, arXiv 2505.11953",
    verified="third-party code",
    params=SatImpParams,
    formula=satimp,
    negatives="ascent",
    labels="inside",
)
