"""Plain SFT: every token counts the same."""

from __future__ import annotations

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params


class UniformParams(Params):
    """`uniform` takes no parameters."""


def uniform(inputs: Inputs, params: UniformParams, *, xp: Namespace) -> Array:  # noqa: ARG001
    """Every scored token has priority 1: plain SFT."""
    return xp.astype(inputs.mask, xp.float64)


UNIFORM = Method(
    name="uniform",
    version=1,
    sign="positive",
    roles=(),
    scope="token",
    denominator="all",
    equation="w = 1",
    citation="plain supervised fine-tuning",
    verified="own",
    params=UniformParams,
    signals=(),
    formula=uniform,
)
