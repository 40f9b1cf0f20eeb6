"""ProFit: train only on tokens whose probability lies in a range."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.student.source import StudentParams


class ProfitParams(StudentParams):
    """Parameters of `profit`; defaults are the authors'."""

    mode: Literal["higher", "lower", "middle"] = "higher"
    """`higher` keeps p >= tau, `lower` keeps p <= tau, `middle` keeps tau <= p <= upper."""
    tau: float = Field(0.1, ge=0, le=1)
    """Threshold on the probability."""
    upper: float | None = Field(None, ge=0, le=1)
    """Mode `middle` only: the greatest probability kept."""

    @model_validator(mode="after")
    def _upper_goes_with_middle(self) -> Self:
        if (self.mode == "middle") != (self.upper is not None):
            raise ValueError('upper goes with mode "middle", and only with it')
        if self.upper is not None and self.upper < self.tau:
            raise ValueError(f"upper must be at least tau, {self.tau}")
        return self


def profit(inputs: Inputs, params: ProfitParams, *, xp: Namespace) -> Array:
    """Train only on tokens the model finds likely enough; the others are taken for replaceable wording.

    w_t = 1[p >= tau], or 1[p <= tau], or 1[tau <= p <= upper], constant

    The authors' code divides by all valid tokens whenever the trainer passes their number, which it does in their
    training, and by the kept ones otherwise. All is taken here: it is what they trained with, and it does not raise the
    weight of the kept tokens because others were dropped. Their mode `random` is left out: it drops tokens by chance,
    as a control, and a priority is a function of its evidence.
    """
    p = xp.exp(inputs.evidence(params.source).logprob)
    kept = p <= params.tau if params.mode == "lower" else p >= params.tau
    if params.upper is not None:
        kept = kept & (p <= params.upper)
    return xp.where(kept, xp.ones_like(p), xp.zeros_like(p))


PROFIT = Method(
    name="profit",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = 1[p >= tau], 1[p <= tau] or 1[tau <= p <= upper]",
    citation="ProFit, arXiv 2601.09195",
    verified="authors' code",
    params=ProfitParams,
    formula=profit,
)
