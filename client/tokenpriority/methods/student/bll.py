"""Beyond Log-Likelihood (BLL): powers of the probability, and thresholds on it.

Each loss f(p) of the authors becomes the weight on the NLL that has the same gradient, w(p) = -p f'(p). Values of the
loss differ between the two forms; gradients do not.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.student.source import StudentParams

_LEAST = 1e-30
"""Weight of a selected token whose probability underflows: next to nothing, but counted by the denominator `kept`."""


class BllParams(StudentParams):
    """Parameters of `bll`."""

    alpha: float = Field(1.0, gt=0, le=100)
    """Exponent of the family: 1, the default, is the authors' objective "p"; they also use 10. Towards 0 it becomes
    plain SFT."""


class BllThresholdParams(StudentParams):
    """Parameters of `bll_threshold`; side and threshold have no default, as with the authors."""

    side: Literal["top", "bottom"]
    """`top` keeps p >= tau, `bottom` keeps p <= tau."""
    tau: float = Field(ge=0, le=1)
    """Threshold on the probability; below 1 for the top, above 0 for the bottom."""
    weight: Literal["p", "one"] = "p"
    """Weight of a kept token: `p` is the loss 1 - p (OnlyTopP, OnlyBottomP), `one` the NLL (OnlyTopLogP,
    OnlyBottomLogP)."""

    @model_validator(mode="after")
    def _some_can_be_kept(self) -> Self:
        if self.side == "top" and self.tau == 1:
            raise ValueError('side "top" needs tau below 1')
        if self.side == "bottom" and self.tau == 0:
            raise ValueError('side "bottom" needs tau above 0')
        return self


def bll(inputs: Inputs, params: BllParams, *, xp: Namespace) -> Array:
    """Weight each token by a power of its own probability.

    w_t = p^alpha, the gradient of the loss (1 - p^alpha) / alpha. alpha = 1 is DFT's gradient; alpha > 1 leans further
    towards what the model believes already. Taken in log space, so that no p is raised to a power after underflow.
    """
    return xp.exp(params.alpha * inputs.evidence(params.source).logprob)


def bll_threshold(inputs: Inputs, params: BllThresholdParams, *, xp: Namespace) -> Array:
    """Train only on tokens whose probability is above, or below, a threshold.

    w_t = p 1[p >= tau] or p 1[p <= tau], the gradient of the loss (1 - p) on the kept tokens; or the indicator alone.
    The authors multiply the loss mask itself, so the denominator counts the kept tokens; the mask has no gradient.
    """
    p = xp.exp(inputs.evidence(params.source).logprob)
    kept = p >= params.tau if params.side == "top" else p <= params.tau
    weight = xp.ones_like(p) if params.weight == "one" else xp.maximum(p, xp.full_like(p, _LEAST))
    return xp.where(kept, weight, xp.zeros_like(p))


BLL = Method(
    name="bll",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = p^alpha",
    citation="Beyond Log-Likelihood, arXiv 2510.00526",
    verified="authors' code",
    params=BllParams,
    formula=bll,
)

BLL_THRESHOLD = Method(
    name="bll_threshold",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="kept",
    equation="w_t = p 1[p >= tau] or p 1[p <= tau], or the indicator alone",
    citation="Beyond Log-Likelihood, arXiv 2510.00526",
    verified="authors' code",
    params=BllThresholdParams,
    formula=bll_threshold,
)
