"""The torch engine against a float64 forward of the same model, and what it does when things go wrong."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenpriority.errors import EngineFault, InvalidSequence, Unavailable
from tokenpriority_service.engines import Job
from tokenpriority_service.engines.torch import TorchEngine

BFLOAT16_WORST, BFLOAT16_MEAN = 0.4, 0.04
"""Errors of bfloat16 logprobs, entropies and top-1 logprobs, in nats, for a model whose logits reach about 10."""

Open = Callable[..., TorchEngine]


def check_all(lab: Any, kind: str, jobs: list[Job], results: list[Any], **bound: float) -> None:
    compared = 0
    for job, rows in zip(jobs, results, strict=True):
        compared += lab.check(rows, lab.truth(lab.exact(kind), job), job.score_from, **bound)
    wanted = sum(max(0, len(job.token_ids) - job.score_from) for job in jobs)
    assert compared >= 0.9 * wanted


def test_all_six_signals_of_64_mixed_sequences(lab: Any, open_engine: Open, kind: str) -> None:
    jobs = lab.jobs(64)
    check_all(lab, kind, jobs, lab.score(open_engine(kind), jobs))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_tokens": 1},
        {"max_batch_tokens": 70},
        {"logits_bytes": 3 * 4 * 97},
        {"max_batch_tokens": 150, "logits_bytes": 4 * 97},
    ],
)
def test_batches_and_chunks_do_not_show(lab: Any, open_engine: Open, kind: str, settings: dict[str, int]) -> None:
    """Alone, beside others, in a padded batch, in head chunks of a row: the same numbers."""
    jobs = lab.jobs(12, seed=1)
    together = lab.score(open_engine(kind), jobs)
    apart = lab.score(open_engine(kind, **settings), jobs)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_one_sequence_alone(lab: Any, open_engine: Open, kind: str) -> None:
    jobs = lab.jobs(1, seed=2)
    check_all(lab, kind, jobs, lab.score(open_engine(kind), jobs))


def test_concurrent_calls_get_their_own_results(lab: Any, open_engine: Open) -> None:
    calls = [lab.jobs(5, seed=seed) for seed in range(6)]
    check_all(lab, "llama", [job for call in calls for job in call], lab.score(open_engine("llama"), *calls))


def test_score_from_gives_the_numbers_of_the_whole(lab: Any, open_engine: Open) -> None:
    jobs = [Job(job.token_ids, start) for start, job in enumerate(lab.jobs(30, seed=4), 1)]
    check_all(lab, "qwen3", jobs, lab.score(open_engine("qwen3"), jobs))


def test_sequences_with_nothing_to_score_are_nan_without_a_forward(lab: Any, open_engine: Open) -> None:
    one, none, most = Job(np.array([3], np.uint32)), Job(np.arange(5, dtype=np.uint32), 5), lab.jobs(1)[0]
    rows = lab.score(open_engine("llama"), [one, most, none])
    assert [each.shape for each in rows] == [(6, 1), (6, lab.max_len), (6, 5)]
    assert np.isnan(rows[0]).all()
    assert np.isnan(rows[2]).all()
    assert lab.score(open_engine("llama"), []) == []


def test_longrope_does_not_leak_between_lengths(lab: Any, open_engine: Open) -> None:
    """A forward beyond 24 tokens uses other frequencies for all in it; a short sequence must not be in it."""
    jobs = [job for job in lab.jobs(60, seed=5) if len(job.token_ids) > 16]
    assert {len(job.token_ids) > 24 for job in jobs} == {True, False}
    check_all(lab, "phi3_longrope", jobs, lab.score(open_engine("phi3_longrope"), jobs))


def test_exact_ties_are_counted(lab: Any, open_engine: Open, tmp_path: Path) -> None:
    """Ten rows of lm_head alike: whatever the hidden state, their logits are one number."""
    model = lab.build("phi_bias")
    model.lm_head.weight.data[10:20] = 0
    model.lm_head.bias.data[10:20] = 1.5
    model.save_pretrained(tmp_path)
    job = Job(np.array([1, 10, 12, 50, 19, 14, 60, 11], np.uint32))
    [rows] = lab.score(open_engine(tmp_path), [job])
    expected = lab.truth(model.double(), job)
    lab.check(rows, expected)
    tied, others = [1, 2, 4, 5, 7], [3, 6]
    np.testing.assert_allclose(rows[5, tied], 9 * np.exp(rows[0, tied]), rtol=1e-6)
    assert (rows[5, others] == 0).all()


def test_bfloat16_is_within_its_bound(lab: Any, open_engine: Open) -> None:
    engine, jobs = open_engine("llama", dtype="bfloat16"), lab.jobs(16, seed=6)
    assert engine.info.dtype == "bfloat16"
    model = lab.build("llama").bfloat16().double()
    parts = [
        np.abs(rows - lab.truth(model, job)[:6])[:3, 1:]
        for job, rows in zip(jobs, lab.score(engine, jobs), strict=True)
    ]
    errors = np.concatenate(parts, axis=1)
    assert errors.shape[1] > 200
    assert errors.max() < BFLOAT16_WORST
    assert errors.mean() < BFLOAT16_MEAN


def test_a_suppressed_token_is_a_fault_of_its_job_alone(lab: Any, open_engine: Open, tmp_path: Path) -> None:
    """Its logit is -inf, so it has no logprob; entropies and masses of all others stay right."""
    model = lab.build("phi_bias")
    model.lm_head.bias.data[5] = -torch.inf
    model.save_pretrained(tmp_path)
    bad = Job(np.array([1, 2, 5, 3], np.uint32))
    unwanted = Job(np.array([1, 2, 5, 3], np.uint32), 3)
    good = Job(np.array([5, 2, 3], np.uint32))
    fault, *rows = lab.score(open_engine(tmp_path), [bad, unwanted, good])
    assert isinstance(fault, EngineFault)
    assert str(fault) == "the model gave logprob = -inf at position 2"
    for job, each in zip([unwanted, good], rows, strict=True):
        lab.check(each, lab.truth(model.double(), job), job.score_from)


def test_bad_jobs_among_good_ones(lab: Any, open_engine: Open) -> None:
    good = lab.jobs(3, seed=7)
    unknown = Job(np.array([1, 97], np.uint32))
    long = Job(np.zeros(lab.max_len + 1, np.uint32))
    first, *bad, last = lab.score(open_engine("llama"), [good[0], unknown, long, good[2]])
    check_all(lab, "llama", [good[0], good[2]], [first, last])
    assert [type(each) for each in bad] == [InvalidSequence, InvalidSequence]
    assert str(bad[0]) == "token_ids[1]: expected an id below 97, got 97"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_forward_that_fails_fails_its_job_alone(lab: Any, open_engine: Open, error: type[Exception]) -> None:
    engine, jobs = open_engine("llama"), lab.jobs(4, seed=8)
    poison = 96

    def refuse(module: Any, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and (inputs[0] == poison).any():
            raise error("no room")

    jobs = [Job(np.minimum(job.token_ids, poison - 1)) for job in jobs]
    jobs[2] = Job(np.full(30, poison, np.uint32))
    handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        results = lab.score(engine, jobs)
    finally:
        handle.remove()
    fault = results.pop(2)
    assert isinstance(fault, EngineFault)
    assert "no room" in str(fault)
    del jobs[2]
    check_all(lab, "llama", jobs, results)
    check_all(lab, "llama", jobs, lab.score(engine, jobs))


def test_cancelled_jobs_never_begin(lab: Any, open_engine: Open) -> None:
    """The first forward is held; what is cancelled meanwhile is not run after it."""
    engine = open_engine("llama", max_batch_tokens=1)
    inside, release, seen = threading.Event(), threading.Event(), []

    def hold(module: Any, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding):
            seen.append(int(inputs[0][0, 0]))
            inside.set()
            assert release.wait(30)

    def job(first: int) -> Job:
        return Job(np.array([first, 1, 2], np.uint32))

    async def scenario() -> list[Any]:
        first = asyncio.create_task(engine.score([job(10)]))
        await asyncio.to_thread(inside.wait, 30)
        cancelled = asyncio.create_task(engine.score([job(20), job(21)]))
        kept = asyncio.create_task(engine.score([job(30)]))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        release.set()
        return [*await first, *await kept]

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hold)
    try:
        results = asyncio.run(scenario())
    finally:
        handle.remove()
    check_all(lab, "llama", [job(10), job(30)], results)
    assert seen == [10, 30]


def test_close_frees_the_model_and_refuses_work(lab: Any, open_engine: Open) -> None:
    def loaded() -> int:
        gc.collect()
        return sum(type(each).__name__ == "GPT2LMHeadModel" for each in gc.get_objects())

    before = loaded()
    engine = open_engine("gpt2")
    assert loaded() == before + 1
    asyncio.run(engine.close())
    asyncio.run(engine.close())
    assert loaded() == before
    [refused] = lab.score(engine, lab.jobs(1))
    assert isinstance(refused, Unavailable)
    assert engine.info.vocab_size == lab.vocab_size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_evidence(lab: Any, open_engine: Open, kind: str) -> None:
    jobs = lab.jobs(64)
    check_all(lab, kind, jobs, lab.score(open_engine(kind, device="cuda"), jobs))
