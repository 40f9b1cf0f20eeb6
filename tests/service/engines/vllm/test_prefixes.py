"""Prefix reuse: beginnings whose evidence is not wanted come from vLLM's cache, and only those."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tokenpriority_service.engines import Job


def cached_tokens(engine: Any, ids: Any, score_from: int, salt: str = "") -> tuple[int, Any]:
    """How many tokens of a prompt vLLM took from its cache, as it says itself, and the evidence [6, T - score_from]."""
    from tokenpriority_service.engines.vllm import internals
    from tokenpriority_service.engines.vllm.wish import Wish

    async def ask(llm: Any) -> tuple[int, Any]:
        params = internals.PoolingParams(
            task=internals.TASK, extra_kwargs=Wish(score_from).pack(), skip_reading_prefix_cache=False
        )
        async for output in llm.encode(internals.prompt(ids.tolist(), salt), params, f"prefix-{score_from}"):
            found = output
        return found.num_cached_tokens, found.outputs.data.numpy()

    async def call() -> tuple[int, Any]:
        result: tuple[int, Any] = await engine._core.call(ask)
        return result

    return asyncio.run(call())


def test_only_whole_blocks_before_the_wanted_rows_are_taken(vllm: Any, llama: Any) -> None:
    """All of the prompt has been computed before, so a hit that is not capped would swallow wanted rows. The first
    wanted row is at position score_from - 1, which must be computed.
    """
    ids = vllm.ids(512, seed=11)
    truth = vllm.truth("llama", Job(ids))
    assert cached_tokens(llama, ids, 1)[0] == 0
    for score_from in (1, 2, 127, 128, 129, 130, 255, 256, 257, 258, 384, 385, 386, 510, 511):
        cached, evidence = cached_tokens(llama, ids, score_from)
        assert cached == (score_from - 1) // vllm.block * vllm.block
        np.testing.assert_allclose(evidence[:3], truth[:3, score_from:], rtol=0, atol=1e-4)
        rows = vllm.score(llama, [Job(ids, score_from)])[0]
        vllm.check(rows, Job(ids, score_from), truth)


def test_completions_of_one_prompt(vllm: Any, llama: Any) -> None:
    """One system prompt, many completions: all at once before it is cached, and once more when it is."""
    prompt = vllm.ids(300, seed=12)
    jobs = [Job(np.concatenate([prompt, vllm.ids(1 + 13 * n, seed=100 + n)]), 300) for n in range(16)]
    first = vllm.score(llama, jobs)
    vllm.check_all(first, jobs, "llama")
    for rows, again in zip(first, vllm.score(llama, jobs), strict=True):
        vllm.close_to(rows, again, 1e-5)
    fresh = np.concatenate([prompt, vllm.ids(40, seed=200)])
    cached, _ = cached_tokens(llama, fresh, 300)
    assert cached == 256


def test_turns_of_a_conversation(vllm: Any, llama: Any) -> None:
    """Each turn is scored on top of all before it, which were computed for the turns before."""
    ids, ends = vllm.ids(512, seed=13), (140, 150, 300, 431, 512)
    truth = vllm.truth("llama", Job(ids))
    start = 1
    for end in ends:
        cached, evidence = cached_tokens(llama, ids[:end], start)
        assert cached == (start - 1) // vllm.block * vllm.block
        np.testing.assert_allclose(evidence[:3], truth[:3, start:end], rtol=0, atol=1e-4)
        start = end


def test_a_prefix_is_only_shared_by_what_begins_alike(vllm: Any, llama: Any) -> None:
    """The same block behind another one is another prefix."""
    ids = vllm.ids(400, seed=14)
    other = ids.copy()
    other[0] = (other[0] + 1) % 512
    jobs = [Job(ids, 390), Job(other, 390), Job(ids[128:], 262)]
    vllm.check_all(vllm.score(llama, jobs[:1]), jobs[:1], "llama")
    assert cached_tokens(llama, other, 390)[0] == 0
    assert cached_tokens(llama, ids[128:], 262)[0] == 0
    vllm.check_all(vllm.score(llama, jobs), jobs, "llama")


def test_prefixes_are_shared_within_a_salt_only(vllm: Any, llama: Any) -> None:
    """Whether an answer came from the cache shows in its time, so a team could ask whether another scored a text."""
    ids = vllm.ids(400, seed=16)
    jobs = [Job(ids, 390, salt="alpha")]
    first = vllm.score(llama, jobs)
    vllm.check_all(first, jobs, "llama")
    assert cached_tokens(llama, ids, 390, "beta")[0] == 0
    assert cached_tokens(llama, ids, 390, "")[0] == 0
    cached, evidence = cached_tokens(llama, ids, 390, "alpha")
    assert cached == 384
    vllm.close_to(evidence[:3], first[0][:3, 390:], 1e-4)
    for salt in ("beta", ""):
        jobs = [Job(ids, 390, salt=salt)]
        vllm.check_all(vllm.score(llama, jobs), jobs, "llama")


@pytest.mark.slow
def test_caching_on_equals_caching_off(vllm: Any, llama: Any, cramped: Any) -> None:
    ids = vllm.ids(512, seed=15)
    jobs = [Job(ids[:length], max(1, length - 20), top20=True) for length in (512, 129, 260, 390, 512, 21)]
    jobs += [Job(ids, score_from) for score_from in (1, 128, 129, 300)]
    vllm.score(llama, [Job(ids)])
    for on, off in zip(vllm.score(llama, jobs), vllm.score(cramped, jobs), strict=True):
        vllm.close_to(on, off, 1e-5)
    assert cached_tokens(llama, ids, 500)[0] == 384
    assert cached_tokens(cramped, ids, 500)[0] == 0
