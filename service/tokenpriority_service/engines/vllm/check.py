"""The self-check of the fast path: a fixed probe scored twice in the same workers.

Knows the probe, the plain way (full logits, log_softmax, in float64) and how far the two may be apart. The rest of the
answer, that it does not depend on how the prompt was cut or cached, is held against the first answer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenpriority_service.engines.engine import Ids, Rows
from tokenpriority_service.engines.statistics import SIGNALS

ROWS = 3
"""Rows `plain` adds: logprob, entropy, top1_logprob."""

TOLERANCE = 1e-4
"""Nats between statistics and plain log_softmax over the same logits, whatever the dtype of the model."""

DRIFT = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.5}
"""Nats between two runs of one position that were batched or cached differently: the forward itself rounds apart."""

_LENGTH = 48


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    """[3, n] float32 from full logits [n, V] and targets [n], by definition."""
    logprobs = logits.double().log_softmax(-1)
    entropy = -torch.special.xlogy(logprobs.exp(), logprobs.exp()).sum(-1)
    chosen = logprobs.gather(1, targets[:, None]).squeeze(1)
    return torch.stack([chosen, entropy, logprobs.amax(-1)]).float()


def probe(vocab_size: int, max_model_len: int) -> Ids:
    """Ids spread over the whole vocabulary, at most 48 of them."""
    count = min(_LENGTH, max_model_len)
    return ((np.arange(count, dtype=np.int64) * 7919 + 13) % vocab_size).astype(np.uint32)


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


def compare_runs(first: Rows, second: Rows, dtype: str) -> None:
    """Raise ValueError if two runs of the same positions, [S, n] each, are further apart than `DRIFT`."""
    error = np.abs(first[0] - second[0])
    if not (error <= DRIFT[dtype]).all():
        raise ValueError(
            f"the self-check failed: the same tokens scored from the middle differ by {error.max():.3g} nats "
            f"(at most {DRIFT[dtype]:g} in {dtype} is allowed)"
        )
