"""Every signal against the float64 truth, for each way a model has of getting from ids to logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tokenpriority_service.engines import Job

LENGTHS = (512, 1, 2, 511, 128, 129, 3, 192, 193, 64, 300)
"""Of one call: the longest, the shortest, and those around a block (128) and a step (192)."""


def test_the_truth_is_that_of_plain_loops(vllm: Any, lab: Any) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 30)).round(1)  # with ties
    targets = rng.integers(0, 30, 40)
    loops = np.array([lab.statistics(row, y) for row, y in zip(logits.tolist(), targets.tolist(), strict=True)]).T
    got = vllm.definitions(logits, targets)
    np.testing.assert_allclose(got[:6], loops[:6], rtol=0, atol=1e-12)
    np.testing.assert_allclose(got[7], loops[6], rtol=0, atol=1e-12)


def every_signal(vllm: Any, engine: Any, kind: str) -> None:
    """Mixed lengths, then the same from the middle on, after which their beginnings are cached."""
    jobs = vllm.jobs(*LENGTHS, kind=kind, top20=True)
    vllm.check_all(vllm.score(engine, jobs), jobs, kind)
    later = [Job(job.token_ids, max(1, len(job.token_ids) // 2), top20=bool(n % 2)) for n, job in enumerate(jobs)]
    vllm.check_all(vllm.score(engine, later), later, kind)


def test_llama(vllm: Any, llama: Any) -> None:
    every_signal(vllm, llama, "llama")
    assert (llama.info.engine, llama.info.dtype) == ("vllm", "float32")
    assert (llama.info.max_model_len, llama.info.vocab_size) == (512, 512)
    assert llama.fault is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "granite"])
def test_other_architectures(vllm: Any, open_engine: Callable[..., Any], kind: str) -> None:
    """Heads wider than the model; a tied head over a padded vocabulary, soft-caps, scaled embeddings and a sliding
    window; scaled logits. A wide vocabulary (Qwen2, tied): see test_memory.
    """
    with open_engine(vllm.saved(kind), max_batch_tokens=192) as engine:
        assert engine.info.vocab_size == vllm.kinds[kind]["vocab_size"]
        every_signal(vllm, engine, kind)
