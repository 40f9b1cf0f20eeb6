"""A denominator that is known only after the forward passes of an optimiser step.

Which tokens a live method keeps is decided in each micro-batch's forward pass. The gradients are therefore accumulated
under a count known beforehand and multiplied once, before clipping, by the exact ratio of the two counts over the
whole global batch. Knows gradients and counts; knows nothing of weights or of TRL.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class DeferredCount:
    """The tokens kept in the optimiser step so far, on this process."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._losses: list[Tensor] = []

    def clear(self) -> None:
        """Begin an optimiser step."""
        self._kept, self._losses = [], []

    def add_kept(self, weights: Tensor) -> None:
        """Count the non-zero weights of a micro-batch."""
        self._kept.append((weights != 0).sum())

    def add_loss(self, loss: Tensor) -> None:
        """Remember a micro-batch's loss, which the logs already hold."""
        self._losses.append(loss)

    def kept(self, accelerator: Any) -> Tensor:
        """The tokens kept in the whole global batch, int64 scalar. Every process must call."""
        found: Tensor = accelerator.reduce(torch.stack(self._kept).sum())
        return found

    def correction(self, ratio: Tensor) -> Tensor:
        """What to add to the logged sum of losses, so that it is as if all had been multiplied by `ratio`."""
        return torch.stack(self._losses).sum() * (ratio - 1)


@torch.no_grad()
def rescale(parameters: Iterable[Any], ratio: Tensor) -> None:
    """Multiply every gradient by `ratio`, a scalar."""
    factor = ratio.item()  # a number, since sharded gradients mix with no plain tensor
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
