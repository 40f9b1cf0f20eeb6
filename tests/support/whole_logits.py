"""The weighted loss of whole logits, as its equation reads: the truth for kernels that never hold them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpriority.methods import Negatives

WEIGHTS = [0.0, 1.0, 0.25, -1.5, 3.0, -0.25, 0.0]
COUNTS = torch.tensor([40, 30, 20, 10, 4])
"""All, kept, positive, negative, sequences."""


def naive(logits: Tensor, targets: Tensor, weights: Tensor, negatives: Negatives, up: float, down: float) -> Tensor:
    """A scalar in the logits' dtype from logits (n, V), targets and weights (n,) and the two divisors."""
    logprob = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
    penalty = -torch.log(1 - logprob.exp()) if negatives == "unlikelihood" else logprob
    return torch.where(weights > 0, -weights * logprob / up, -weights * penalty / down).sum()
