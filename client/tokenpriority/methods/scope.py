"""Steps over a set of tokens: counting, means, ranking and what is kept of a ranking.

Knows order and counting, once, for every method that needs them. `axis=-1` is each sequence by itself, `axis=None` the
whole micro-batch. Knows nothing of what is counted. Ties are broken by place, earlier first (row by row in a
micro-batch), so that the same evidence gives the same tokens on every device.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.method import PairParams

Axis = Literal[-1] | None


class RankingParams(PairParams):
    """Parameters of a method that keeps the best share of tokens under a frozen reference and a frozen base."""

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


def count(mask: Array, *, axis: Axis = -1, xp: Namespace) -> Array:
    """Number of True entries, int64, the axis kept with length 1 (all axes for None)."""
    return xp.sum(xp.astype(mask, xp.int64), axis=axis, keepdims=True)


def total(values: Array, mask: Array, *, axis: Axis = -1, xp: Namespace) -> Array:
    """Sum over the True entries, the axis kept with length 1."""
    return xp.sum(xp.where(mask, values, xp.zeros_like(values)), axis=axis, keepdims=True)


def mean(values: Array, mask: Array, *, axis: Axis = -1, xp: Namespace) -> Array:
    """Mean over the True entries, the axis kept with length 1; 0 where there is none."""
    number = xp.astype(count(mask, axis=axis, xp=xp), values.dtype)
    return total(values, mask, axis=axis, xp=xp) / xp.maximum(number, xp.ones_like(number))


def exp_over_mean(logs: Array, mask: Array, *, axis: Axis = -1, xp: Namespace) -> Array:
    """exp(logs) divided by its mean over the True entries, without under- or overflow however far the logs are from 0.

    0 where masked out and where a log is -inf, even where every one is: never 0 / 0.
    """
    counted = xp.where(mask, logs, xp.full_like(logs, -xp.inf))
    top = xp.max(counted, axis=axis, keepdims=True)
    some = top > -xp.inf
    values = xp.exp(counted - xp.where(some, top, xp.zeros_like(top)))  # the greatest is 1
    divisor = mean(values, mask, axis=axis, xp=xp)
    return values / xp.where(some, divisor, xp.ones_like(divisor))


def median(values: Array, mask: Array, *, axis: Axis = -1, xp: Namespace) -> Array:
    """Median of the True entries, the lower of the middle two (as `torch.median`), the axis kept with length 1; 0
    where there is none."""
    keys = xp.where(mask, values, xp.full_like(values, xp.inf))
    number = count(mask, axis=axis, xp=xp)
    shape = number.shape
    if axis is None:
        keys, number = xp.reshape(keys, (-1,)), xp.reshape(number, (1,))
    middle = xp.maximum((number - 1) // 2, xp.zeros_like(number))
    found = xp.take_along_axis(xp.sort(keys, axis=-1), middle, axis=-1)
    return xp.reshape(xp.where(number > 0, found, xp.zeros_like(found)), shape)


def descending_rank(score: Array, mask: Array, *, axis: Axis = -1, xp: Namespace) -> Array:
    """0-based rank of each masked-in score, highest first, int64 of the mask's shape; masked-out entries rank last."""
    keys = xp.where(mask, -score, xp.full_like(score, xp.inf))
    if axis is None:
        keys = xp.reshape(keys, (-1,))
    order = xp.argsort(keys, axis=-1, stable=True)
    return xp.reshape(xp.argsort(order, axis=-1, stable=True), mask.shape)


def floor_share(mask: Array, share: float, *, axis: Axis = -1, xp: Namespace) -> Array:
    """floor(n * share) in float64, n the number of True entries: the authors' `int(n * share)`."""
    return xp.floor(xp.astype(count(mask, axis=axis, xp=xp), xp.float64) * share)


def ceil_share(mask: Array, share: float, *, axis: Axis = -1, xp: Namespace) -> Array:
    """ceil(n * share) in float64, n the number of True entries."""
    return xp.ceil(xp.astype(count(mask, axis=axis, xp=xp), xp.float64) * share)


def best(score: Array, mask: Array, number: Array, *, axis: Axis = -1, xp: Namespace) -> Array:
    """Boolean of the mask's shape: the `number` highest masked-in scores."""
    rank = descending_rank(score, mask, axis=axis, xp=xp)
    return mask & (xp.astype(rank, xp.float64) < number)


def kept(score: Array, mask: Array, params: RankingParams, *, xp: Namespace) -> Array:
    """Boolean of the mask's shape: each sequence's best floor(n * keep), or every score at or above the threshold."""
    if params.threshold is not None:
        return mask & (score >= params.threshold)
    return best(score, mask, floor_share(mask, params.keep, xp=xp), xp=xp)
