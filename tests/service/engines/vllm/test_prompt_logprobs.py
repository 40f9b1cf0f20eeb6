"""The fallback: vLLM's own prompt logprobs give logprob and rank, and nothing else is made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tokenpriority.errors import InvalidSequence
from tokenpriority.evidence import SIGNALS
from tokenpriority_service.engines import Job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(vllm: Any, open_engine: Callable[..., Any]) -> Iterator[Any]:
    with open_engine(vllm.saved("llama"), evidence="prompt_logprobs", max_batch_tokens=192) as engine:
        yield engine


def test_logprob_and_rank_are_right_and_the_rest_absent(vllm: Any, engine: Any) -> None:
    plain = vllm.jobs(511, 1, 2, 128, 129, 192, 300, seed=51)
    jobs = plain + [Job(job.token_ids, 1 + len(job.token_ids) // 3) for job in plain]
    given = [SIGNALS.index("logprob"), SIGNALS.index("rank")]
    absent = [row for row in range(len(SIGNALS)) if row not in given]
    for job, rows in zip(jobs, vllm.score(engine, jobs), strict=True):
        truth = vllm.truth("llama", job)
        assert rows.shape == (6, len(job.token_ids))
        assert rows.dtype == np.float32
        assert np.isnan(rows[absent]).all()
        assert np.isnan(rows[:, : job.score_from]).all()
        np.testing.assert_allclose(rows[0, job.score_from :], truth[0, job.score_from :], rtol=0, atol=1e-4)
        apart = truth[7] > 2e-4
        apart[: job.score_from] = False
        np.testing.assert_array_equal(rows[3, apart], truth[3, apart])


def test_it_says_what_it_gives(vllm: Any, engine: Any, llama: Any) -> None:
    assert engine.info.signals == ("logprob", "rank")
    assert engine.info.max_model_len == 511
    assert engine.info.fingerprint != llama.info.fingerprint
    refused = vllm.score(engine, [Job(vllm.ids(512)), Job(vllm.ids(9), top20=True)])
    assert [type(error) for error in refused] == [InvalidSequence] * 2
    assert "expected 1 to 511 tokens, got 512" in str(refused[0])
    assert "entropy_top20" in str(refused[1])
