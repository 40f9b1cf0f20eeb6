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

ALL, KEPT, POSITIVE, NEGATIVE, SEQUENCES = range(5)
"""Index of each count in the vector that `count` returns."""

_DIVISORS: dict[Denominator, tuple[int, int]] = {
    "all": (ALL, ALL),
    "kept": (KEPT, KEPT),
    "by_sign": (POSITIVE, NEGATIVE),
    "sequences": (SEQUENCES, SEQUENCES),
}

FLOOR = 1e-5
"""Least 1 - p at which unlikelihood follows -log(1 - p); below it goes straight on along the tangent."""


def shifted(priorities: Tensor) -> Tensor:
    """From the label's own position to the position that predicts it: (R, C) -> (R, C - 1). The one shift there is."""
    return priorities[:, 1:]


def count(labels: Tensor, priorities: Tensor, sequences: int) -> Tensor:
    """What a batch trains on: int64 (5,), by ALL valid labels, KEPT (w != 0), POSITIVE, NEGATIVE, SEQUENCES.

    `labels` and `priorities` are (R, C) and unshifted; priorities are 0 wherever the label is ignored. `sequences` is
    the number of documents with a valid label.
    """
    valid, weights = shifted(labels) != IGNORED, shifted(priorities)
    documents = torch.tensor(sequences, device=labels.device)
    return torch.stack([valid.sum(), (weights != 0).sum(), (weights > 0).sum(), (weights < 0).sum(), documents])


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


def penalty(logprob: Tensor, negatives: Negatives) -> Tensor:
    """What a token of weight -1 is charged: -log(1 - p), or log p under `ascent`, which is unbounded below."""
    return unlikelihood(logprob) if negatives == "unlikelihood" else logprob.float()


def weighted_loss(
    positive: Tensor, negative: Tensor, weights: Tensor, counts: Tensor, *, denominator: Denominator
) -> Tensor:
    """The loss of one micro-batch, a float32 scalar with gradient.

    `positive` is what a token of weight 1 is charged (its NLL, or the loss of a method that gives losses), `negative`
    what one of weight -1 is. They and `weights` are (R, C - 1), finite, weights 0 where nothing is trained. `counts`
    are those of `count`, summed over the whole global batch: every micro-batch of the optimiser step, every process.
    `denominator` chooses which of them divides (never the sum of weights): all -> ALL for both signs, kept -> KEPT,
    sequences -> SEQUENCES, by_sign -> POSITIVE and NEGATIVE.
    """
    weights = weights.detach().float()
    zero = torch.zeros_like(weights)
    # What is not trained on is charged nothing whatever stands there: 0 * inf is NaN.
    up = torch.where(weights > 0, weights * positive.float(), zero).sum()
    down = torch.where(weights < 0, -weights * negative.float(), zero).sum()
    # A sign that no token has sums to 0; its count of 0 must not turn that into 0 / 0.
    of_positive, of_negative = _DIVISORS[denominator]
    return up / counts[of_positive].clamp(min=1) + down / counts[of_negative].clamp(min=1)
