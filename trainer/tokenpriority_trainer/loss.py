"""The weighted loss, its denominators and its two rules for negative weights.

    loss = sum over w > 0 of w * nll / d_pos  +  sum over w < 0 of |w| * penalty / d_neg

Pure functions of tensors. Knows nothing of where weights come from, of models, batches or processes. Weights are
constants here: no gradient flows into them.

Shapes: R rows, C columns of the batch; logprobs and weights are (R, C - 1), where column i speaks of token i + 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenpriority.methods import Denominator, Negatives
from tokenpriority_trainer.documents import IGNORED

ALL, KEPT, POSITIVE, NEGATIVE = range(4)
"""Index of each count in the vector that `count` returns."""

_DIVISORS: dict[Denominator, tuple[int, int]] = {
    "all": (ALL, ALL),
    "kept": (KEPT, KEPT),
    "by_sign": (POSITIVE, NEGATIVE),
}

FLOOR = 1e-5
"""Least 1 - p at which unlikelihood follows -log(1 - p); below it goes straight on along the tangent."""


def shifted(priorities: Tensor) -> Tensor:
    """From the label's own position to the position that predicts it: (R, C) -> (R, C - 1). The one shift there is."""
    return priorities[:, 1:]


def count(labels: Tensor, priorities: Tensor) -> Tensor:
    """How many tokens a batch trains on: int64 (4,), by ALL valid labels, KEPT (w != 0), POSITIVE and NEGATIVE.

    `labels` and `priorities` are (R, C) and unshifted; priorities are 0 wherever the label is ignored.
    """
    valid, weights = shifted(labels) != IGNORED, shifted(priorities)
    return torch.stack([valid.sum(), (weights != 0).sum(), (weights > 0).sum(), (weights < 0).sum()])


def unlikelihood(logprob: Tensor) -> Tensor:
    """-log(1 - p), any shape, float32: what a negative weight is charged under the rule `unlikelihood`.

    Its gradient on the token's logit is p: it pushes hardest on what the model believes in and leaves alone what it
    has unlearnt. In float32 1 - p vanishes near p = 1, so below FLOOR the curve is continued by its tangent,
    -log(FLOOR) + 1 - (1 - p) / FLOOR: value and slope stay finite and, unlike with a clamp, a token the model is
    certain of is still pushed. (Unlikelihood training, arXiv 1908.04319, clamps at the same 1e-5.)
    """
    logprob = logprob.float()
    rest = -torch.expm1(logprob)  # 1 - p without cancellation near p = 1
    rare, certain = logprob < -math.log(2), rest < FLOOR
    # Every branch is computed everywhere, so each is given a harmless value where it is not used: 0 * inf is NaN.
    low = -torch.log1p(-torch.exp(torch.where(rare, logprob, -1.0)))  # value and slope exact near p = 0
    high = -torch.log(torch.where(certain, 1.0, rest))
    tangent = 1 - math.log(FLOOR) - rest / FLOOR
    return torch.where(rare, low, torch.where(certain, tangent, high))


def weighted_loss(
    logprob: Tensor, weights: Tensor, counts: Tensor, *, denominator: Denominator, negatives: Negatives
) -> Tensor:
    """The loss of one micro-batch, a float32 scalar with gradient.

    `logprob` and `weights` are (R, C - 1), finite, weights 0 where nothing is trained; `counts` are those of `count`,
    summed over the whole global batch: every micro-batch of the optimiser step, every process. `denominator`
    chooses which of them divides (never the sum of weights): all -> ALL for both signs, kept -> KEPT for both,
    by_sign -> POSITIVE and NEGATIVE. `negatives`: unlikelihood charges -log(1 - p); ascent charges log p, plain
    gradient ascent, unbounded below.
    """
    weights = weights.detach().float()
    logprob = logprob.float()
    penalty = unlikelihood(logprob) if negatives == "unlikelihood" else logprob
    zero = torch.zeros_like(logprob)
    positive = torch.where(weights > 0, -weights * logprob, zero).sum()
    negative = torch.where(weights < 0, -weights * penalty, zero).sum()
    # A sign that no token has sums to 0; its count of 0 must not turn that into 0 / 0.
    of_positive, of_negative = _DIVISORS[denominator]
    return positive / counts[of_positive].clamp(min=1) + negative / counts[of_negative].clamp(min=1)


def ramped(weights: Tensor, ramp: tuple[float, float] | None, progress: float) -> Tensor:
    """Weights with the negative ones scaled by a factor that runs from ramp[0] to ramp[1] as progress goes 0 to 1."""
    if ramp is None:
        return weights
    factor = ramp[0] + (ramp[1] - ramp[0]) * progress
    return torch.where(weights < 0, weights * factor, weights)
