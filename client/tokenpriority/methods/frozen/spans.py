"""`spans` as a method of its own: only what the caller labelled counts."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params


class SpansParams(Params):
    """Parameters of `spans`."""

    outside: float = Field(0.0, ge=-100, le=100)
    """Priority of the scored tokens outside every span."""


def spans(inputs: Inputs, params: SpansParams, *, xp: Namespace) -> Array:
    """Take the caller's signed labels alone; scored tokens outside every span get `outside`.

    The labels themselves are laid over the result of any method, this one too, by `tokenpriority.spans.apply`. With
    one span of priority 1 over the final answer this is the second stage of SFTKey (arXiv 2512.21017, from the paper;
    the first is `uniform`), whose divisor is not known: here it is the number of tokens of non-zero priority.
    """
    return xp.astype(inputs.mask, xp.float64) * params.outside


SPANS = Method(
    name="spans",
    version=1,
    sign="signed",
    roles=(),
    scope="token",
    denominator="kept",
    equation="w_t = the caller's label, else outside",
    citation="Token Priority (signed priority, Phi in R), arXiv 2602.01227",
    verified="own",
    params=SpansParams,
    signals=(),
    formula=spans,
)
