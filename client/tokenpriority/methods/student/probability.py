"""Weights that are the token's own probability: PriFT-prob under a frozen reference, DFT under the live student.

Both are one rule, w = sg(probability), and differ only in whose probability it is; either source serves both names.
"""

from __future__ import annotations

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs, Source
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.student.source import StudentParams


class PriftProbParams(Params):
    """Whose probability weighs the token."""

    source: Source = "reference"
    """The frozen reference's, as in PriFT, or the live student's, which is DFT."""


class DftParams(StudentParams):
    """Parameters of `dft`; with source "reference" it is `prift_prob`."""


def dft(inputs: Inputs, params: PriftProbParams | DftParams, *, xp: Namespace) -> Array:
    """Weight each token by its own probability, without gradient.

    w_t = sg(p(y_t)); the gradient equals that of the loss 1 - p (BLL, alpha = 1): for any loss f(p) the weight on the
    NLL is -p f'(p).
    """
    return xp.exp(inputs.evidence(params.source).logprob)


def prift_prob(inputs: Inputs, params: PriftProbParams, *, xp: Namespace) -> Array:
    """Weight each token by the frozen reference's probability of it.

    w_t = q(y_t), the rule of `dft` with a probability that training does not move.
    """
    return dft(inputs, params, xp=xp)


PRIFT_PROB = Method(
    name="prift_prob",
    version=1,
    sign="positive",
    roles=("reference",),
    scope="token",
    denominator="all",
    equation="w_t = q(y_t)",
    citation="PriFT, arXiv 2606.09396",
    verified="authors' code",
    params=PriftProbParams,
    formula=prift_prob,
)

DFT = Method(
    name="dft",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = sg(p(y_t))",
    citation="DFT, arXiv 2508.05629",
    verified="authors' code",
    params=DftParams,
    formula=dft,
)
