"""One forward over a batch of jobs: token ids in, evidence out.

Knows padding, alignment and which rows are wanted. Knows nothing of queues, and leaves the vocabulary to the head.

Shapes: B jobs padded to L tokens, N wanted positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenpriority.errors import EngineFault
from tokenpriority_service.engines.contract import filled_rows, wanted
from tokenpriority_service.engines.engine import Job, Rows
from tokenpriority_service.engines.head import Head, hidden_states


class Scorer:
    """A model and its head, scoring batches; every job must want at least one position."""

    def __init__(self, model: PreTrainedModel, head: Head) -> None:
        self._model = model
        self._head = head

    @torch.inference_mode()
    def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """Evidence of each job, see `Engine.score`, or an EngineFault where some of it is not finite.

        One forward for all; the head twice where some jobs want `top20` and others do not pay for it.
        """
        ids = _padded(jobs)
        hidden = hidden_states(self._model, torch.from_numpy(ids).to(self._model.device)).flatten(0, 1)
        results: dict[int, Rows | Exception] = {}
        for top20 in {job.top20 for job in jobs}:
            numbers = [number for number, job in enumerate(jobs) if job.top20 == top20]
            rows, targets = (array.to(hidden.device) for array in _wanted_rows(ids, jobs, numbers))
            evidence = self._head.evidence(hidden[rows], targets, top20=top20).cpu().numpy()
            edges = accumulate((wanted(jobs[number]) for number in numbers), initial=0)
            for number, (a, b) in zip(numbers, pairwise(edges), strict=True):
                results[number] = _result(jobs[number], evidence[:, a:b])
        return [results[number] for number in range(len(jobs))]


def _padded(jobs: Sequence[Job]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Right-padded ids [B, L]."""
    ids = np.zeros((len(jobs), max(len(job.token_ids) for job in jobs)), np.int64)
    for number, job in enumerate(jobs):
        ids[number, : len(job.token_ids)] = job.token_ids
    return ids


def _wanted_rows(
    ids: np.ndarray[Any, np.dtype[np.int64]], jobs: Sequence[Job], numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Wanted rows [N] of the flattened batch, and their targets [N], of these jobs; int64.

    Row i - 1 predicts token i.
    """
    rows, targets = [], []
    for number in numbers:
        start, size = jobs[number].score_from, len(jobs[number].token_ids)
        rows.append(np.arange(start - 1, size - 1) + number * ids.shape[1])
        targets.append(ids[number, start:size])
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(targets))


def _result(job: Job, evidence: Rows) -> Rows | Exception:
    try:
        return filled_rows(job, evidence)
    except EngineFault as fault:
        return fault
