"""One forward over a batch of jobs: token ids in, evidence out.

Knows padding, alignment and which rows are wanted. Knows nothing of queues, and leaves the vocabulary to the head.

Shapes: B jobs padded to L tokens, N wanted positions in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

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
        """Evidence [6, T] of each job, or an EngineFault where some of it is not finite."""
        ids, rows, targets = (array.to(self._model.device) for array in _inputs(jobs))
        hidden = hidden_states(self._model, ids).flatten(0, 1)[rows]
        evidence = self._head.evidence(hidden, targets).cpu().numpy()
        edges = accumulate((wanted(job) for job in jobs), initial=0)
        return [_result(job, evidence[:, a:b]) for job, (a, b) in zip(jobs, pairwise(edges), strict=True)]


def _inputs(jobs: Sequence[Job]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids [B, L], wanted rows [N] of the flattened batch, and their targets [N]; int64.

    Row i - 1 predicts token i.
    """
    length = max(len(job.token_ids) for job in jobs)
    ids = np.zeros((len(jobs), length), np.int64)
    rows, targets = [], []
    for number, job in enumerate(jobs):
        size = len(job.token_ids)
        ids[number, :size] = job.token_ids
        rows.append(np.arange(job.score_from - 1, size - 1) + number * length)
        targets.append(ids[number, job.score_from : size])
    return torch.from_numpy(ids), torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(targets))


def _result(job: Job, evidence: Rows) -> Rows | Exception:
    try:
        return filled_rows(job, evidence)
    except EngineFault as fault:
        return fault
