"""A `vllm serve --runner pooling` with our plugin, over /pooling: all six signals against the float64 forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Headers
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority.errors import EngineFault
from tokenpriority.evidence import SIGNALS
from tokenpriority_service.engines import Job
from tokenpriority_service.engines.remote import RemoteEngine
from tokenpriority_service.engines.remote.pooling import rows as rows_of
from tokenpriority_service.engines.remote.replica import Answer

Open = Callable[..., RemoteEngine]


def test_all_six_signals_of_mixed_sequences(lab: Any, kit: Any, exact: Any, pooling: Any, open_engine: Open) -> None:
    engine = open_engine(pooling, vocab_size=kit.vocab_size)
    assert engine.info.signals == SIGNALS
    assert engine.info.max_model_len == kit.limit
    jobs = [Job(job.token_ids, 1 + n % 5) for n, job in enumerate(kit.jobs(kit.limit, 2, 1, *range(3, 40)))]
    compared = 0
    for job, rows in zip(jobs, kit.score(engine, jobs), strict=True):
        compared += lab.check(rows, lab.truth(exact, job), job.score_from)
    assert compared > 0.9 * sum(max(0, len(job.token_ids) - job.score_from) for job in jobs)


def test_the_vocabulary_of_the_tokenizer_is_the_next_best(folder: Path, pooling: Any, open_engine: Open) -> None:
    assert open_engine(pooling, tokenizer=str(folder)).info.vocab_size == 256


def test_both_ways_give_the_same_numbers(lab: Any, kit: Any, generating: Any, pooling: Any, open_engine: Open) -> None:
    jobs = kit.jobs(*range(2, 30), seed=3)
    plain, full = open_engine(generating), open_engine(pooling, vocab_size=kit.vocab_size)
    assert plain.info.fingerprint != full.info.fingerprint
    for one, other in zip(kit.score(plain, jobs), kit.score(full, jobs), strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(one[3, 1:], other[3, 1:])


def test_replicas_asked_in_two_ways_are_not_mixed(kit: Any, generating: Any, pooling: Any, open_engine: Open) -> None:
    """A sequence would get six signals or two, as chance had it."""
    engine = open_engine(pooling, generating, vocab_size=kit.vocab_size)
    results = kit.score(engine, kit.jobs(*[5] * 20))
    assert all(np.isfinite(rows[:, 1:]).all() for rows in results)


def answer(body: bytes, length: int, shape: list[int], **changes: Any) -> Answer:
    item = {"index": 0, "embed_dtype": "float32", "endianness": "little", "start": 0, "end": len(body), "shape": shape}
    metadata = {"data": [item | changes], "usage": {"prompt_tokens": length, "total_tokens": length}}
    return Answer(body, Headers({"metadata": json.dumps(metadata)}))


@given(st.integers(1, 40), st.data())
def test_numbers_stand_at_their_own_tokens(length: int, data: Any) -> None:
    start = data.draw(st.integers(1, length + 2))
    evidence = -np.arange(6.0 * (length - 1)).reshape(6, length - 1)
    job = Job(np.arange(length, dtype=np.uint32), start)
    rows = rows_of(answer(evidence.astype("<f4").tobytes(), length, [6, length - 1]), job)
    expected = np.full((6, length), np.nan)
    expected[:, 1:] = evidence
    expected[:, :start] = np.nan
    np.testing.assert_array_equal(rows, expected)


GOOD = np.full((6, 3), -1.0, "<f4")


def spoiled(row: int, column: int, value: float) -> bytes:
    evidence = GOOD.copy()
    evidence[row, column] = value
    return evidence.tobytes()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (answer(GOOD.tobytes()[:-4], 4, [6, 3]), r"68 bytes for float32 \[6, 3\]"),
        (answer(GOOD.tobytes(), 4, [3, 6]), r"takes float32 \[6, 3\]"),
        (answer(GOOD.tobytes(), 4, [6, 4]), r"takes float32 \[6, 3\]"),
        (answer(GOOD.tobytes(), 4, [6, 3], endianness="big"), "big"),
        (answer(GOOD.tobytes(), 4, [6, 3], embed_dtype="float16"), "float16"),
        (answer(GOOD.tobytes(), 3, [6, 3]), "scored 3 of 4 tokens"),
        (answer(spoiled(0, 1, np.nan), 4, [6, 3]), "logprob = nan at position 2"),
        (answer(spoiled(0, 2, 0.5), 4, [6, 3]), "logprob = 0.5 at position 3"),
        (answer(spoiled(4, 2, np.inf), 4, [6, 3]), "mass_above = inf at position 3"),
        (Answer(GOOD.tobytes(), Headers()), "metadata"),
        (Answer(GOOD.tobytes(), Headers({"metadata": "[]"})), "metadata"),
    ],
)
def test_unsound_answers_are_faults(given: Answer, complaint: str) -> None:
    with pytest.raises(EngineFault, match=complaint):
        rows_of(given, Job(np.arange(4, dtype=np.uint32)))
