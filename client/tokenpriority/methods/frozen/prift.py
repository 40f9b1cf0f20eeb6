"""PriFT-mass: keep a token if enough of the reference's distribution lies at or below it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs, Source
from tokenpriority.methods.method import Method, Params


class PriftMassParams(Params):
    """Parameters of `prift_mass`; defaults are the authors'."""

    tau: float = Field(0.5, ge=0, le=1)
    """Least mass at or below the token for it to be kept."""
    ties: Literal["strict", "inclusive"] = "strict"
    """`strict` counts the token itself only (the authors' code); `inclusive` all tokens tied with it (their README)."""
    source: Source = "reference"
    """Whose distribution is read; the authors' is the student's own starting checkpoint, frozen."""


def prift_mass(inputs: Inputs, params: PriftMassParams, *, xp: Namespace) -> Array:
    """Keep tokens that are plausible: at least tau of the probability mass lies at or below them.

    u_t = sum of q(v) over q(v) < q(y_t), plus q(y_t)  =  1 - mass_above - mass_tied  (strict)
    u_t = sum of q(v) over q(v) <= q(y_t)              =  1 - mass_above              (inclusive)
    w_t = 1[u_t >= tau]

    The sums run over the whole vocabulary: top-k log-probs do not hold them. The divisor is the number of all scored
    tokens, kept or not, as in the authors' code.
    """
    evidence = inputs.evidence(params.source)
    mass = 1 - evidence.signal("mass_above")
    if params.ties == "strict":
        mass = mass - evidence.signal("mass_tied")
    none = xp.zeros_like(mass)
    mass = xp.where(mass > 0, mass, none)  # 1 minus two rounded sums may fall just below 0
    return xp.where(mass >= params.tau, xp.ones_like(mass), none)


PRIFT_MASS = Method(
    name="prift_mass",
    version=1,
    sign="positive",
    roles=("reference",),
    scope="token",
    denominator="all",
    equation="w_t = 1[sum_{q(v)<q(y_t)} q(v) + q(y_t) >= tau]",
    citation="PriFT, arXiv 2606.09396",
    verified="authors' code",
    params=PriftMassParams,
    signals=("mass_above", "mass_tied"),
    formula=prift_mass,
)
