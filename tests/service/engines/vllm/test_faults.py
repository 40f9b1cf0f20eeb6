"""Processes that are killed: who waits is told at once, the engine comes back by itself, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenpriority.errors import Unavailable
from tokenpriority_service.engines.vllm import core as engine_core

COMES_BACK = 150.0
"""Seconds; a start takes 15 to 60 of them."""


def alive(pid: int) -> bool:
    """Whether a process runs, whoever its parent is by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def family(processes: Any, engine_core: int) -> list[int]:
    return [engine_core, *processes.below(engine_core)]


async def killed_in_flight(engine: Any, jobs: list[Any], core: int) -> list[Any]:
    """What concurrent calls of one job each come to whose core is killed before half of them are done."""
    calls = [asyncio.create_task(engine.score([job])) for job in jobs]
    await asyncio.sleep(0.3)
    assert sum(call.done() for call in calls) < len(jobs) // 2
    os.kill(core, signal.SIGKILL)
    async with asyncio.timeout(10):
        return [result for call in calls for result in await call]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nobody_is_left_waiting_by_a_core_that_is_shut_down_as_soon_as_it_died(
    vllm: Any, open_engine: Callable[..., Any], processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM tells its callers a moment after it knows of the death; here we look all the time, and are first."""
    monkeypatch.setattr(engine_core, "_POLL", 0.0)
    monkeypatch.setattr(engine_core, "_TELLING_SECONDS", 0.0)
    monkeypatch.setattr(engine_core, "FIRST_PAUSE", 60.0)  # no restart, which closing would wait for
    others, jobs = set(processes.named("EngineCore")), vllm.jobs(*[512] * 64, seed=62)
    with open_engine(vllm.saved("llama"), max_batch_tokens=128, prefix_caching=False) as engine:
        [core] = set(processes.named("EngineCore")) - others
        lost = [result for result in asyncio.run(killed_in_flight(engine, jobs, core)) if isinstance(result, Exception)]
        assert len(lost) >= 32
        assert all(isinstance(error, Unavailable) and "died" in str(error) for error in lost)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_core_comes_back_and_a_killed_worker_ends_it_too(
    vllm: Any, llama: Any, open_engine: Callable[..., Any], processes: Any, folders: dict[str, str]
) -> None:
    """One engine from start to end, beside another that must not notice."""
    others = set(processes.named("EngineCore"))
    jobs, few = vllm.jobs(*[512] * 64, seed=61), vllm.jobs(100, 300, 2, seed=62)
    adapters = {"mine": folders["first"]}
    with open_engine(vllm.saved("llama"), max_batch_tokens=128, prefix_caching=False, adapters=adapters) as engine:
        [core] = set(processes.named("EngineCore")) - others
        before, killed = engine.info, family(processes, core)
        assert len(killed) == 2, "a core and its worker"
        vllm.check_all(vllm.score(engine, few), few, "llama")
        adapted = vllm.score(engine.adapters["mine"], few)

        results = asyncio.run(killed_in_flight(engine, jobs, core))
        lost = [result for result in results if isinstance(result, Exception)]
        assert len(lost) >= 32
        assert all(isinstance(error, Unavailable) and "died" in str(error) for error in lost)
        done = [(result, job) for result, job in zip(results, jobs, strict=True) if not isinstance(result, Exception)]
        vllm.check_all([rows for rows, _ in done], [job for _, job in done], "llama")

        assert "died" in engine.fault
        assert all(isinstance(error, Unavailable) for error in vllm.score(engine, few))
        assert llama.fault is None
        vllm.check_all(vllm.score(llama, few), few, "llama")

        vllm.until(lambda: engine.fault is None, "the engine is back", COMES_BACK)
        vllm.check_all(vllm.score(engine, few + jobs[:2]), few + jobs[:2], "llama")
        assert engine.info == before
        for rows, again in zip(adapted, vllm.score(engine.adapters["mine"], few), strict=True):
            vllm.close_to(rows, again, 1e-5)
        vllm.until(lambda: not any(map(alive, killed)), "the worker of the killed core is gone", 30)

        [core] = set(processes.named("EngineCore")) - others
        [worker] = processes.below(core)
        os.kill(worker, signal.SIGKILL)
        vllm.until(lambda: engine.fault, "the death of the worker is noticed", 10)
        assert all(isinstance(error, Unavailable) for error in vllm.score(engine, few))
    vllm.until(lambda: not alive(core) and not alive(worker), "they are gone", 30)
    assert set(processes.named("EngineCore")) == others, "closing also ends a restart that is under way"
    assert isinstance(vllm.score(engine, few)[0], Unavailable)
    assert "closed" in engine.fault
