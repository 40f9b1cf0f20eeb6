"""Tensor parallelism: each process holds half of a padded vocabulary, and no process the logits of the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tokenpriority_service.engines import Job


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_give_the_same_evidence(vllm: Any, open_engine: Callable[..., Any]) -> None:
    """1001 tokens of a tied, soft-capped head: 512 in the first process; 489 and 23 of padding in the second. Chunks
    of 64 rows, so that there are several in a step.
    """
    settings = {"tensor_parallel": 2, "max_batch_tokens": 192, "logits_bytes": 64 * 501 * 4}
    with open_engine(vllm.saved("gemma2"), **settings) as engine:
        assert engine.info.vocab_size == 1001
        jobs = vllm.jobs(512, 1, 2, 129, 192, 300, seed=31, kind="gemma2", top20=True)
        assert any(job.token_ids.max() == 1000 for job in jobs)
        vllm.check_all(vllm.score(engine, jobs), jobs, "gemma2")
        mixed = [Job(job.token_ids, 1 + len(job.token_ids) // 2, top20=n % 2 == 0) for n, job in enumerate(jobs)]
        vllm.check_all(vllm.score(engine, *([job] for job in mixed)), mixed, "gemma2")
