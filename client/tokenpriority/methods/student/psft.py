"""PSFT: PPO's clipped ratio with every token an action to be encouraged."""

from __future__ import annotations

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params

_FURTHEST = 20.0
"""Nats by which the log ratio is clamped, as in the authors' code."""


class PsftParams(Params):
    """Parameters of `psft`; the default is the authors'.

    Their lower clip, 0.8, is absent: with a positive advantage the smaller of r and its clipped value is r itself
    below the range, so it never acts.
    """

    high: float = Field(1.28, ge=1)
    """Ratio above which a token is no longer pushed."""


def psft(inputs: Inputs, params: PsftParams, *, xp: Namespace) -> Array:
    """Weight each token by its gain in probability since the snapshot, until it has gained enough.

    w_t = r 1[r <= high], r = p / p_old, constant: the gradient of the loss -min(r, clip(r, 0.8, high))

    Where the authors' clamp of log r at -20 acts, their gradient is 0, and so is this weight.
    """
    change = inputs.evidence("student").logprob - inputs.evidence("old").logprob
    ratio = xp.exp(xp.clip(change, -_FURTHEST, _FURTHEST))
    return xp.where((change >= -_FURTHEST) & (ratio <= params.high), ratio, xp.zeros_like(ratio))


PSFT = Method(
    name="psft",
    version=1,
    sign="positive",
    roles=("student", "old"),
    scope="token",
    denominator="all",
    equation="w_t = r 1[r <= high], r = p / p_old",
    citation="PSFT, arXiv 2508.17784",
    verified="authors' code",
    params=PsftParams,
    formula=psft,
)
