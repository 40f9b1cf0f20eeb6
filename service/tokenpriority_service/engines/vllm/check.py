"""The self-check of the fast path: a fixed probe, scored in the same workers in several ways.

Knows the probe, the plain way (full logits, log_softmax, in float64), what changing one token must and must not change,
and how far two answers may be apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenpriority_service.engines.engine import Ids, Rows
from tokenpriority_service.engines.statistics import SIGNALS

Signal = np.ndarray[Any, np.dtype[np.float32]]

ROWS = 3
"""Rows `plain` adds: logprob, entropy, top1_logprob."""

TOLERANCE = 1e-4
"""Nats between statistics and plain log_softmax over the same logits, whatever the dtype of the model."""

DRIFT = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.5}
"""Mean nats between two runs of the same positions, batched or cached differently: the forward itself rounds apart."""


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    """[3, n] float32 from full logits [n, V] and targets [n], by definition."""
    logprobs = logits.double().log_softmax(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1)
    chosen = logprobs.gather(1, targets[:, None]).squeeze(1)
    return torch.stack([chosen, entropy, logprobs.amax(-1)]).float()


def compare(checked: Rows) -> None:
    """Raise ValueError if statistics and plain way disagree in [6 + 3, n] of the probe."""
    evidence, expected = checked[:ROWS], checked[SIGNALS : SIGNALS + ROWS]
    error = np.abs(evidence - expected)
    # An entry that is not a number agrees with nothing.
    if not (error <= TOLERANCE).all():
        raise ValueError(
            f"the self-check failed: fast path and log_softmax over the same logits differ by {error.max():.3g} nats "
            f"(at most {TOLERANCE:g} is allowed)"
        )


def compare_runs(first: Signal, second: Signal, dtype: str, what: str) -> None:
    """Raise ValueError if two runs of the same positions are further apart than `DRIFT`."""
    error = np.abs(first - second).sum() / max(1, len(first))
    if not error <= DRIFT[dtype]:
        raise ValueError(
            f"the self-check failed: {what} differ by {error:.3g} nats on average (at most {DRIFT[dtype]:g} in {dtype})"
        )


def variants(ids: Ids, vocab_size: int) -> dict[int, Ids]:
    """Position -> the ids with another token there."""
    found = {}
    for position in {len(ids) // 4, len(ids) // 2, 3 * len(ids) // 4} - {0, len(ids) - 1}:
        found[position] = ids.copy()
        found[position][position] = (int(ids[position]) + 1 + vocab_size // 3) % vocab_size
    return found


def compare_variants(first: Rows, changed: Mapping[int, Rows], dtype: str) -> None:
    """Raise ValueError if evidence is not of the token it stands at: another token at position j must change its own
    logprob and what comes after it, and nothing before. Rows are [6, T - 1], from token 1 on.
    """
    for position, second in changed.items():
        compare_runs(first[1, :position], second[1, :position], dtype, "entropies before a changed token")
        compare_runs(first[0, : position - 1], second[0, : position - 1], dtype, "logprobs before a changed token")
    if np.ptp(first[2]) == 0:
        return  # a model that says the same everywhere
    own = any(first[0, j - 1] != second[0, j - 1] for j, second in changed.items())
    after = any(first[1, j] != second[1, j] for j, second in changed.items())
    if changed and not (own and after):
        raise ValueError("the self-check failed: evidence does not follow the tokens it stands at")
