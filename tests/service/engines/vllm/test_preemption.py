"""A key-value cache for two long sequences: requests wait for room, and start over when it is taken from them.

With vLLM's defaults a prompt is admitted only when all of it fits, and one that has begun is served before any other
is admitted, so a scoring engine does not run out of room by itself. `reset_prefix_cache(reset_running_requests=True)`
takes it: the same preemption, asked for.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tokenpriority_service.engines import Job

pytestmark = pytest.mark.slow


def jobs_of(vllm: Any, seed: int) -> list[Job]:
    lengths = [512, 511, 400, 1, 129, 512, 300, 2] * 5
    return [
        Job(job.token_ids, 1 + n % 3 * 70, top20=n % 4 == 0, urgent=n % 5 == 3)
        for n, job in enumerate(vllm.jobs(*lengths, seed=seed))
    ]


def test_requests_wait_for_room(vllm: Any, cramped: Any) -> None:
    jobs = jobs_of(vllm, 21)
    vllm.check_all(vllm.score(cramped, jobs), jobs, "llama")


def test_urgent_jobs_do_not_wait_for_those_that_have_not_begun(vllm: Any, cramped: Any) -> None:
    patient, urgent = vllm.jobs(*[512] * 40, seed=23), vllm.jobs(300, 200, seed=24)

    async def run() -> tuple[list[Any], int]:
        calls = [asyncio.create_task(cramped.score([job])) for job in patient]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        results = await cramped.score([replace(job, urgent=True) for job in urgent])
        done = sum(call.done() for call in calls)
        return [*[row for call in calls for row in await call], *results], done

    results, done = asyncio.run(run())
    assert done < 20, "of 40 that came before"
    vllm.check_all(results, [*patient, *urgent], "llama")


@pytest.mark.parametrize("name", ["cramped", "llama"])
def test_preempted_prompts_start_over(vllm: Any, request: pytest.FixtureRequest, name: str) -> None:
    """In the midst of prompts, some of whose rows are done; without and with a prefix cache.

    A reset that spares running requests says False exactly while some hold blocks; one right after it that does not
    spare them then says True because they have been preempted.
    """
    engine: Any = request.getfixturevalue(name)
    jobs = jobs_of(vllm, 22)

    async def reset(llm: Any) -> tuple[bool, bool]:
        spared, forced = await asyncio.gather(
            llm.reset_prefix_cache(), llm.reset_prefix_cache(reset_running_requests=True)
        )
        return bool(spared), bool(forced)

    async def run() -> tuple[list[Any], int]:
        call, preempted = asyncio.create_task(engine.score(jobs)), 0
        while not call.done():
            spared, forced = await engine._core.call(reset)
            preempted += forced and not spared
            await asyncio.sleep(0.05)
        return await call, preempted

    results, preempted = asyncio.run(run())
    assert preempted >= 3
    vllm.check_all(results, jobs, "llama")
