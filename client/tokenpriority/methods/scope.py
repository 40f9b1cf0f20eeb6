"""The ranking step: which tokens of a sequence, or above which threshold, a method keeps.

Knows order and counting, once, for every method that ranks. Knows nothing of what is ranked. Ties are broken by
position, earlier first, so that the same evidence gives the same tokens on every device.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.method import Params


class RankingParams(Params):
    """Parameters of a method that keeps the best share of tokens under a frozen reference and a frozen base."""

    base: str = Field("base", min_length=1)
    """Name of the server's model that plays the base."""
    keep: float = Field(0.6, gt=0, le=1)
    """Share of the scored tokens that is kept."""
    scope: Literal["sequence", "dataset"] = "sequence"
    """Over which set the share is taken."""
    threshold: float | None = None
    """Dataset scope only: the least score kept, from `calibrate`."""

    @model_validator(mode="after")
    def _threshold_goes_with_dataset(self) -> Self:
        if self.scope == "dataset" and self.threshold is None:
            raise ValueError('scope "dataset" needs a threshold: run client.calibrate first, or use scope "sequence"')
        if self.scope == "sequence" and self.threshold is not None:
            raise ValueError('a threshold goes with scope "dataset" only')
        return self


def count(mask: Array, *, xp: Namespace) -> Array:
    """Number of True entries, int64 scalar array."""
    return xp.sum(xp.astype(mask, xp.int64))


def descending_rank(score: Array, mask: Array, *, xp: Namespace) -> Array:
    """0-based rank of each masked-in score, highest first, shape (T,) int64; masked-out entries rank last."""
    order = xp.argsort(xp.where(mask, -score, xp.full_like(score, xp.inf)), stable=True)
    return xp.argsort(order, stable=True)


def floor_share(mask: Array, share: float, *, xp: Namespace) -> Array:
    """floor(n * share) in float64, n the number of True entries: the authors' `int(n * share)`."""
    return xp.floor(xp.astype(count(mask, xp=xp), xp.float64) * share)


def kept(score: Array, mask: Array, params: RankingParams, *, xp: Namespace) -> Array:
    """Boolean (T,): the best floor(n * keep) of the sequence, or every score at or above the threshold."""
    if params.threshold is not None:
        return mask & (score >= params.threshold)
    rank = descending_rank(score, mask, xp=xp)
    return mask & (xp.astype(rank, xp.float64) < floor_share(mask, params.keep, xp=xp))
