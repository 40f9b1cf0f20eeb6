"""The last steps of a weight, after its method: schedule and clip.

Knows how far a run is and how a factor follows it; pure functions, one body for numpy and torch. Knows nothing of
methods, of where weights come from or of the loss they end in.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.errors import InvalidParameter

Clip = tuple[float, float]
"""Least and greatest final weight, least <= 0 <= greatest and not both 0: no weight changes its sign, and 0 stays 0."""

CLIP_LIMIT = "must be two finite numbers, low <= 0 <= high, not both 0"


class Schedule(BaseModel):
    """A factor on weights that follows the optimiser steps of a run.

    At step k (from 0) of N the factor is, with x = k / N,

        constant    start
        linear      start + (end - start) x
        cosine      start + (end - start) (1 - cos(pi x)) / 2

    so that `end` is what a further step would have, as with schedules of the learning rate. N counts all optimiser
    steps of the run. Raises pydantic's ValidationError naming the field, its value and the limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    shape: Literal["constant", "linear", "cosine"] = "linear"
    """How the factor goes from `start` to `end`."""
    start: float = Field(0.0, ge=0)
    """Factor at the first step; a negative one would turn unlearning into learning."""
    end: float | None = Field(None, ge=0)
    """Factor after the last step; `constant` has none, the others must have one."""
    sign: Literal["negative", "positive", "both"] = "negative"
    """Whose weights are scaled."""
    over: Literal["run", "epoch"] = "run"
    """What k counts: the steps of the run, or those of the epoch. N is the run's in both cases, so that over several
    epochs `epoch` starts anew in each and never comes near `end`: Forgetting's code does that."""

    @model_validator(mode="after")
    def _has_its_ends(self) -> Self:
        if (self.shape == "constant") != (self.end is None):
            raise ValueError('end: goes with shape "linear" and "cosine", which need it, and not with "constant"')
        if not self.start and not self.end:
            raise ValueError("start and end: must not both be 0, which would drop the weights")
        return self

    def factor(self, step: int, steps: int, *, epoch_steps: int | None = None) -> float:
        """The factor at optimiser step `step` (from 0) of `steps`.

        `epoch_steps` is the number of optimiser steps of an epoch. Raises InvalidParameter if `over` is "epoch"
        and that is not known.
        """
        if self.end is None:
            return self.start
        if self.over == "epoch":
            if epoch_steps is None:
                raise InvalidParameter('schedule.over: "epoch" needs the number of steps of an epoch, not known here')
            step %= epoch_steps
        way = step / max(1, steps)
        if self.shape == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        return self.start + (self.end - self.start) * way

    def __str__(self) -> str:
        end = "" if self.end is None else f" to {self.end:g}"
        pace = ", restarting every epoch" if self.over == "epoch" else ""
        return f"{self.shape} {self.start:g}{end} on {self.sign}{pace}"


ASCENT = Schedule(end=0.25)
"""Under gradient ascent where neither caller nor method says otherwise: Forgetting's size (arXiv 2508.04329), counted
over the run."""


def scheduled(weights: Array, schedule: Schedule, factor: float, *, xp: Namespace) -> Array:
    """Weights with those of the schedule's sign multiplied by `factor`; shape and dtype kept."""
    if schedule.sign == "both":
        return weights * factor
    chosen = weights < 0 if schedule.sign == "negative" else weights > 0
    return xp.where(chosen, weights * factor, weights)


def clipped(weights: Array, clip: Clip, *, xp: Namespace) -> Array:
    """Weights within `clip`, shape and dtype kept. Raises ValueError if the bounds do not keep to CLIP_LIMIT."""
    low, high = clip
    if not is_clip(clip):
        raise ValueError(f"clip: {CLIP_LIMIT}, got {clip!r}")
    return xp.clip(weights, low, high)


def is_clip(clip: tuple[float, ...]) -> bool:
    """Whether these bounds keep to CLIP_LIMIT."""
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in clip)
    return numbers and len(clip) == 2 and all(map(math.isfinite, clip)) and clip[0] <= 0 <= clip[1] and any(clip)
