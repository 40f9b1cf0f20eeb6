"""Plain gradient ascent on what is to be forgotten: alone (GA), and beside what is to be retained (GradDiff)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.unlearning.forget import ForgetParams, signed


class GaParams(ForgetParams):
    """Parameters of `ga`."""


class GradDiffParams(ForgetParams):
    """Parameters of `graddiff`; gamma and alpha (`retain`) are the authors'."""

    forget: Literal["all", "labelled"] = "labelled"
    gamma: float = Field(1.0, ge=0, le=100)
    """Weight of forgotten tokens."""


def ga(inputs: Inputs, params: GaParams, *, xp: Namespace) -> Array:
    """Gradient ascent: raise the NLL of what is to be forgotten, without end.

    loss = -mean(nll), so w_t = -1 on every forgotten token

    Unbounded below: the push on the logits never fades, however unlikely the token has become, and the model
    collapses sooner or later. The trainer's rule `negatives = "unlikelihood"` is the bounded alternative, and it ends
    where the token is unlearnt; `wga`, `npo` and `simnpo` fade by their weight.
    """
    return signed(xp.astype(inputs.mask, xp.float64), inputs, params, xp=xp)


def graddiff(inputs: Inputs, params: GradDiffParams, *, xp: Namespace) -> Array:
    """Gradient difference: ascent on what is to be forgotten, plain SFT on what is to be retained.

    loss = -gamma mean_forget(nll) + alpha mean_retain(nll)
    w_t = -gamma |label| where forgotten, +alpha where retained

    Both means have a denominator of their own, as the authors' two batches have. Ascent is as unbounded as in `ga`;
    retaining only slows what it breaks.
    """
    return signed(params.gamma * xp.astype(inputs.mask, xp.float64), inputs, params, xp=xp)


GA = Method(
    name="ga",
    version=1,
    sign="signed",
    roles=(),
    scope="token",
    denominator="all",
    equation="w_t = -1",
    citation="Gradient ascent (knowledge unlearning), arXiv 2210.01504",
    verified="third-party code",
    params=GaParams,
    signals=(),
    formula=ga,
    negatives="ascent",
    labels="inside",
)

GRADDIFF = Method(
    name="graddiff",
    version=1,
    sign="signed",
    roles=(),
    scope="token",
    denominator="by_sign",
    equation="w_t = -gamma where forgotten, +alpha where retained",
    citation="GradDiff (as in TOFU), arXiv 2401.06121",
    verified="authors' code",
    params=GradDiffParams,
    signals=(),
    formula=graddiff,
    negatives="ascent",
    labels="inside",
)
