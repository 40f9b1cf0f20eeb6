"""A wide vocabulary, and a worker that has no memory for its logits."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenpriority.errors import EngineFault, Unavailable
from tokenpriority_service.engines import Job

KIND = "qwen2_wide"
VOCAB = 70_001
MIB = 1 << 20


@pytest.fixture(scope="module")
def wide(vllm: Any, open_engine: Callable[..., Any], processes: Any) -> Iterator[tuple[Any, int]]:
    """An engine, and the process id of its worker."""
    others = processes.named("VLLM::Worker")
    with open_engine(vllm.saved(KIND), max_batch_tokens=256) as engine:
        [worker] = set(processes.named("VLLM::Worker")) - set(others)
        yield engine, worker


def size_of(pid: int) -> int:
    """Bytes of a process's address space."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmSize:")[1].split()[0]) * 1024


@contextlib.contextmanager
def limited(pid: int, size: int) -> Iterator[None]:
    """A process whose address space cannot grow beyond `size` bytes."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (size, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))


@pytest.mark.slow
def test_with_next_to_no_memory_it_is_right_or_a_clear_error(vllm: Any, wide: tuple[Any, int]) -> None:
    """Room for a few rows of logits. If layers before the pooler fail too, that ends the core, and it comes back."""
    engine, worker = wide
    jobs = vllm.jobs(250, 5, 20, seed=72, kind=KIND)
    with limited(worker, size_of(worker) + 2 * MIB):
        results = vllm.score(engine, jobs)
    for rows, job in zip(results, jobs, strict=True):
        if isinstance(rows, Exception):
            assert isinstance(rows, (EngineFault, Unavailable))
            assert "memory" in str(rows) or "died" in str(rows)
        else:
            vllm.check(rows, job, vllm.truth(KIND, job))
    vllm.until(lambda: engine.fault is None, "the engine serves", 150)
    vllm.check_all(vllm.score(engine, jobs), jobs, KIND)


@pytest.mark.slow
def test_a_wide_tied_vocabulary(vllm: Any, wide: tuple[Any, int]) -> None:
    engine, _ = wide
    assert engine.info.vocab_size == VOCAB
    jobs = vllm.jobs(300, 2, 129, seed=73, kind=KIND, top20=True)
    vllm.check_all(vllm.score(engine, jobs), jobs, KIND)
    later = [Job(job.token_ids, len(job.token_ids) - 1) for job in jobs]
    vllm.check_all(vllm.score(engine, later), later, KIND)


class Short:
    """A head that has memory for so many rows only; more meet torch's own error."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if len(hidden) > self.rows:
            torch.empty(1 << 60)
        return hidden @ self.weight


@pytest.mark.parametrize("rows", [1, 3, 5, 100])
def test_the_pooler_tries_smaller_chunks(vllm: Any, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    pooler = pooler_of(Short(rows), monkeypatch)
    hidden, targets = torch.randn(40, 8), torch.arange(40)
    got = pooler._evidence(hidden, torch.arange(30), targets[:30], (True, False))
    expected = vllm.definitions((hidden[:30] @ Short(rows).weight).double().numpy(), targets[:30].numpy())
    np.testing.assert_allclose(got.numpy(), expected[:7], rtol=0, atol=1e-5)


def test_the_pooler_marks_what_it_has_no_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pooler = pooler_of(Short(0), monkeypatch)
    got = pooler._evidence(torch.randn(4, 8), torch.arange(4), torch.arange(4), (False, False))
    assert got.shape == (6, 4)
    assert (got == torch.inf).all()


def test_other_failures_of_the_model_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    pooler = pooler_of(Short(100), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pooler._evidence(torch.randn(4, 9), torch.arange(4), torch.arange(4), (False, False))


def pooler_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pooler outside vLLM's processes, where there is no group of them."""
    from tokenpriority_service.engines.vllm import internals
    from tokenpriority_service.engines.vllm.pooler import EvidencePooler

    monkeypatch.setattr(internals, "tensor_parallel", lambda: 1)
    return EvidencePooler(model, 50, 16 * 50 * 4)
