"""XTF's rule of known tokens: what a frozen model is sure of teaches nothing."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs, Source
from tokenpriority.methods.method import Method, Params


class XtfKnownParams(Params):
    """Parameters of `xtf_known`."""

    known: float = Field(0.05, ge=0, le=1)
    """A token is known where 1 - q(y_t) is below this."""
    source: Source = "reference"
    """Whose probability is read; the published rule reads the base model's."""


def xtf_known(inputs: Inputs, params: XtfKnownParams, *, xp: Namespace) -> Array:
    """Drop the tokens that the model already knows: those of probability above 0.95, by default.

    w_t = 1[1 - q(y_t) >= known]

    One of XTF's three rules, known tokens (KN). The other two, by attention and by distance of embeddings, read what no
    evidence holds; XTF drops what any of the three does.
    """
    logprob = inputs.evidence(params.source).logprob
    doubt = -xp.expm1(logprob)  # 1 - q, exact for q near 1
    return xp.where(doubt < params.known, xp.zeros_like(logprob), xp.ones_like(logprob))


XTF_KNOWN = Method(
    name="xtf_known",
    version=1,
    sign="positive",
    roles=("reference",),
    scope="token",
    denominator="kept",
    equation="w_t = 1[1 - q(y_t) >= known]",
    citation="XTF (its rule of known tokens alone), arXiv 2602.14536",
    verified="second-hand",
    params=XtfKnownParams,
    formula=xtf_known,
)
