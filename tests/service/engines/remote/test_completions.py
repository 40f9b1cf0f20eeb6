"""A plain `vllm serve`, over /v1/completions, against the model's float64 forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import pytest
from httpx import Headers
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority.errors import InvalidSequence
from tokenpriority_service.engines import Job
from tokenpriority_service.engines.remote import RemoteEngine, completions
from tokenpriority_service.engines.remote.replica import Answer

Open = Callable[..., RemoteEngine]

LOGPROB, RANK = 0, 3


def check(lab: Any, exact: Any, job: Job, rows: Any) -> int:
    """Logprob to 1e-4, rank where no other logit is so near that rounding may swap them, NaN elsewhere."""
    truth = lab.truth(exact, job)
    assert rows.shape == (6, len(job.token_ids))
    assert rows.dtype == np.float32
    assert np.isnan(rows[:, : job.score_from]).all()
    assert np.isnan(rows[[1, 2, 4, 5]]).all()
    got, wanted = rows[:, job.score_from :], truth[:, job.score_from :]
    np.testing.assert_allclose(got[LOGPROB], wanted[0], rtol=0, atol=1e-4)
    apart = wanted[6] > 1e-4
    np.testing.assert_array_equal(got[RANK, apart], wanted[3, apart])
    return int(apart.sum())


def test_logprob_and_rank_of_mixed_sequences(
    lab: Any, kit: Any, exact: Any, generating: Any, open_engine: Open
) -> None:
    engine = open_engine(generating)
    jobs = kit.jobs(kit.limit - 1, 2, 1, *range(3, 40))
    compared = sum(check(lab, exact, job, rows) for job, rows in zip(jobs, kit.score(engine, jobs), strict=True))
    assert compared > 0.9 * sum(len(job.token_ids) - 1 for job in jobs)


def test_score_from_gives_the_numbers_of_the_whole(
    lab: Any, kit: Any, exact: Any, generating: Any, open_engine: Open
) -> None:
    jobs = [Job(job.token_ids, start) for start, job in enumerate(kit.jobs(*[20] * 25), 1)]
    results = kit.score(open_engine(generating), jobs)
    assert [int(np.isfinite(rows[LOGPROB]).sum()) for rows in results] == [*range(19, 0, -1), *[0] * 6]
    for job, rows in zip(jobs, results, strict=True):
        check(lab, exact, job, rows)


def test_two_calls_in_two_loops_at_once(lab: Any, kit: Any, exact: Any, generating: Any, open_engine: Open) -> None:
    engine = open_engine(generating, max_concurrent=2)
    calls = [kit.jobs(5, 9, 17, seed=seed) for seed in (1, 2)]
    results: dict[int, Any] = {}
    threads = [Thread(target=lambda i=i: results.update({i: kit.score(engine, calls[i])})) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        for job, rows in zip(calls[i], results[i], strict=True):
            check(lab, exact, job, rows)


def test_info_says_what_the_server_told(kit: Any, generating: Any, open_engine: Open) -> None:
    engine = open_engine(generating.url + "/v1/")
    info = engine.info
    assert (info.engine, info.model, info.signals) == ("remote", "tiny", ("logprob", "rank"))
    assert (info.max_model_len, info.vocab_size) == (kit.limit - 1, kit.vocab_size)
    assert (engine.tokenizer, engine.fault, dict(engine.adapters)) == (None, None, {})
    assert open_engine(generating, max_model_len=10).info.max_model_len == 10


def test_what_the_model_cannot_take_is_refused_beside_what_it_can(kit: Any, generating: Any, open_engine: Open) -> None:
    """An id beyond the vocabulary would end the engine core of a server without a tokenizer."""
    engine = open_engine(generating)
    beyond = Job(np.array([1, kit.vocab_size, 2], np.uint32))
    long, unknown, good = kit.score(engine, [*kit.jobs(kit.limit), beyond, *kit.jobs(4)])
    assert isinstance(long, InvalidSequence)
    assert "expected 1 to 127 tokens, got 128" in long.message
    assert isinstance(unknown, InvalidSequence)
    assert "token_ids[1]: expected an id below 300, got 300" in unknown.message
    assert good.shape == (6, 4)
    (top20,) = kit.score(engine, [Job(np.array([1, 2, 3], np.uint32), top20=True)])
    assert isinstance(top20, InvalidSequence)


def test_the_fingerprint_is_stable_and_covers_what_is_known(folder: Path, generating: Any, open_engine: Open) -> None:
    first = open_engine(generating).info.fingerprint
    assert open_engine(generating).info.fingerprint == first
    others = [open_engine(generating, revision="b"), open_engine(generating, tokenizer=str(folder))]
    assert len({first, *(engine.info.fingerprint for engine in others)}) == 3


def test_the_tokenizer_is_held_against_the_servers(
    folder: Path, other_tokenizer: Path, tmp_path: Path, generating: Any, open_engine: Open
) -> None:
    engine = open_engine(generating, tokenizer=str(folder))
    assert engine.tokenizer is not None
    assert engine.tokenizer("ab")["input_ids"] == [64, 65]
    with pytest.raises(ValueError, match=r"tokenizer: .*the server's gives"):
        open_engine(generating, tokenizer=str(other_tokenizer))
    with pytest.raises(ValueError, match="tokenizer: there is none in"):
        open_engine(generating, tokenizer=str(tmp_path))


@given(st.data(), st.integers(1, 30))
def test_numbers_stand_at_their_own_tokens(data: Any, length: int) -> None:
    ids = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=length, max_size=length))
    start = data.draw(st.integers(1, length + 2))
    logprobs = data.draw(st.lists(st.floats(-9998, 0, width=32), min_size=length, max_size=length))
    entries = [{str(y): {"logprob": p, "rank": i + 1}} for i, (y, p) in enumerate(zip(ids, logprobs, strict=True))]
    body = msgspec.json.encode({"choices": [{"prompt_logprobs": [None, *entries[1:]]}]})
    rows = completions.rows(Answer(body, Headers()), Job(np.array(ids, np.uint32), start))
    expected = np.full((6, length), np.nan, np.float32)
    expected[LOGPROB, start:], expected[RANK, start:] = logprobs[start:], range(start + 1, length + 1)
    np.testing.assert_array_equal(rows, expected)
