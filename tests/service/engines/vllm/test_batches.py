"""What a job gets does not depend on what it is batched with, how it is cut, or what else its call asks for."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.errors import InvalidSequence
from tokenpriority_service.engines import Job

BOUND = 1e-5
"""Nats between two answers to one job in float32."""


def test_alone_together_and_shuffled(vllm: Any, llama: Any) -> None:
    jobs = vllm.jobs(512, 1, 2, 3, 127, 128, 129, 191, 192, 193, 384, 500, seed=1, top20=True)
    alone = [vllm.score(llama, [job])[0] for job in jobs]
    together = vllm.score(llama, jobs)
    order = np.random.default_rng(0).permutation(len(jobs))
    shuffled = dict(zip(order.tolist(), vllm.score(llama, [jobs[n] for n in order]), strict=True))
    for n, rows in enumerate(alone):
        vllm.close_to(rows, together[n], BOUND)
        vllm.close_to(rows, shuffled[n], BOUND)
    vllm.check_all(alone, jobs, "llama")


def test_256_concurrent_calls_of_mixed_lengths(vllm: Any, llama: Any) -> None:
    """Every other one wants the seventh row and not its first third."""
    rng = np.random.default_rng(2)
    plain = vllm.jobs(*rng.integers(1, 200, 240).tolist(), *range(497, 513), seed=2)
    jobs = [Job(j.token_ids, 1 + (n % 2) * (len(j.token_ids) // 3), top20=bool(n % 2)) for n, j in enumerate(plain)]
    results = vllm.score(llama, *([job] for job in jobs))
    vllm.check_all(results, jobs, "llama")
    for first, second in zip(results, vllm.score(llama, jobs), strict=True):
        vllm.close_to(first, second, BOUND)


wishes = st.tuples(st.integers(1, 512), st.integers(1, 600), st.booleans())


@given(st.lists(wishes, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_any_lengths_and_score_froms(vllm: Any, llama: Any, wanted: list[tuple[int, int, bool]]) -> None:
    """Beginnings of one sequence, so that one truth serves all and most of each is in the prefix cache."""
    ids = vllm.ids(512, seed=3)
    truth = vllm.truth("llama", Job(ids))
    jobs = [Job(ids[:length], score_from, top20) for length, score_from, top20 in wanted]
    for job, rows in zip(jobs, vllm.score(llama, jobs), strict=True):
        vllm.check(rows, job, truth[:, : len(job.token_ids)])


def test_what_cannot_be_scored_takes_nothing_down(vllm: Any, llama: Any) -> None:
    good = vllm.jobs(30, 40, seed=4)
    bad = [
        Job(np.array([1, 512], np.uint32)),
        Job(np.zeros(513, np.uint32)),
        Job(np.zeros(0, np.uint32)),
        Job(np.array([1, 2], np.int64)),
        Job(good[0].token_ids, 0),
    ]
    first, *refused, last = vllm.score(llama, [good[0], *bad, good[1]])
    vllm.check_all([first, last], good, "llama")
    assert [type(error) for error in refused] == [InvalidSequence] * len(bad)
    assert "token_ids[1]: expected an id below 512, got 512" in str(refused[0])
    assert "expected 1 to 512 tokens, got 513" in str(refused[1])


def test_nothing_wanted_is_nothing_asked(vllm: Any, llama: Any) -> None:
    ids = vllm.ids(9)
    for rows in vllm.score(llama, [Job(ids, 9), Job(ids, 10_000), Job(ids[:1])]):
        assert rows.shape[0] == 6
        assert np.isnan(rows).all()
    assert vllm.score(llama, []) == []


def test_a_cancelled_call_leaves_the_engine_in_order(vllm: Any, llama: Any) -> None:
    """Its requests are aborted in the core, in whatever step they are."""
    jobs, kept = vllm.jobs(*[512] * 40, seed=5), vllm.jobs(100, 512, seed=6)

    async def run() -> list[Any]:
        call = asyncio.create_task(llama.score(jobs))
        staying = asyncio.create_task(llama.score(kept))
        await asyncio.sleep(0.1)
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return list(await staying)

    vllm.check_all(asyncio.run(run()), kept, "llama")

    async def unfinished() -> int:
        async def count(llm: Any) -> int:
            return int(llm.get_num_unfinished_requests())

        return int(await llama._core.call(count))

    vllm.until(lambda: asyncio.run(unfinished()) == 0, "cancelled requests leave the front end", 10)
    vllm.check_all(vllm.score(llama, jobs[:3]), jobs[:3], "llama")
