"""iw-SFT: importance weights of the live student over the frozen model the data is taken to come from."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.scope import mean

_BOUNDS: dict[str, tuple[float, float]] = {"sequence": (0.0, 16.0), "token": (0.2, 1.8)}
"""Least and greatest weight, the authors' for each unit."""


class IwSftParams(Params):
    """Parameters of `iw_sft`; defaults are the authors' at their call."""

    unit: Literal["sequence", "token"] = "sequence"
    """Whether all tokens of a sequence share one weight or each has its own."""
    temperature: float = Field(1.0, gt=0, le=100)
    """T, which multiplies the mean log-ratio; unit "sequence" only."""

    @model_validator(mode="after")
    def _temperature_goes_with_sequence(self) -> Self:
        if self.unit == "token" and self.temperature != 1:
            raise ValueError('a temperature goes with unit "sequence" only')
        return self


def iw_sft(inputs: Inputs, params: IwSftParams, *, xp: Namespace) -> Array:
    """Weigh data by how much likelier the student holds it than the frozen model does, within bounds.

    w = clamp(exp(T mean_t(log p(y_t) - log q(y_t))), 0, 16) for all tokens of a sequence  (unit "sequence")
    w_t = clamp(p(y_t) / q(y_t), 0.2, 1.8)                                               (unit "token")

    A constant, without gradient. The ratio is bounded before it is exponentiated, so that none overflows. Padding
    is no part of the mean or the denominator, as it is in the authors' code where no count of items is given.
    """
    ratio = inputs.evidence("student").logprob - inputs.evidence("reference").logprob
    if params.unit == "sequence":
        ratio = xp.broadcast_to(params.temperature * mean(ratio, inputs.mask, xp=xp), ratio.shape)
    least, greatest = _BOUNDS[params.unit]
    beyond = xp.full_like(ratio, math.log(greatest) + 1)
    return xp.clip(xp.exp(xp.minimum(ratio, beyond)), least, greatest)


IW_SFT = Method(
    name="iw_sft",
    version=1,
    sign="positive",
    roles=("student", "reference"),
    scope="sequence",
    denominator="all",
    equation="w = clamp(exp(T mean_t(log p(y_t) - log q(y_t))), 0, 16)",
    citation="iw-SFT, arXiv 2507.12856",
    verified="authors' code",
    params=IwSftParams,
    formula=iw_sft,
)
