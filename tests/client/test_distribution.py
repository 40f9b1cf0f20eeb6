"""evidence_of against the definitions of the signals in plain float64 loops, on every array library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp_torch
import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.distribution import evidence_of
from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import ALL_SIGNALS

Logits = list[list[float]]
INF = math.inf


def defined(row: list[float], y: int) -> dict[str, float]:
    """The signals of one row, by their definitions."""
    peak = max(row)
    total = math.fsum(math.exp(z - peak) for z in row)
    q = [math.exp(z - peak) / total for z in row]
    best = sorted(row, reverse=True)[:20]
    share = math.fsum(math.exp(z - peak) for z in best)
    top = [math.exp(z - peak) / share for z in best]
    return {
        "logprob": row[y] - peak - math.log(total),
        "entropy": -math.fsum(p * math.log(p) for p in q if p > 0),
        "top1_logprob": -math.log(total),
        "rank": 1 + sum(z > row[y] for z in row),
        "mass_above": math.fsum(p for p, z in zip(q, row, strict=True) if z > row[y]),
        "mass_tied": math.fsum(p for v, p in enumerate(q) if row[v] == row[y] and v != y),
        "entropy_top20": -math.fsum(p * math.log(p) for p in top if p > 0),
        "collision": math.fsum(p * p for p in q),
    }


@st.composite
def rows(draw: st.DrawFn) -> tuple[Logits, list[int]]:
    """1 to 5 rows over 2 to 30 tokens, with exact ties, magnitudes up to 1e4, and tokens that are impossible."""
    count, vocab = draw(st.integers(1, 5)), draw(st.integers(2, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = (rng.normal(size=vocab) * draw(st.sampled_from([0.1, 3.0, 1e4]))).astype(np.float32)
    logits = levels[rng.integers(0, vocab, (count, vocab))]
    targets = rng.integers(0, vocab, count)
    impossible = rng.random((count, vocab)) < draw(st.sampled_from([0.0, 0.4]))
    impossible[np.arange(count), targets] = False
    logits[impossible] = -np.inf
    return logits.tolist(), targets.tolist()


BACKENDS: list[tuple[Any, Callable[[Any], Any], Callable[[Any], Any], float]] = [
    (np, lambda v: np.array(v, np.float64), lambda v: np.array(v, np.int64), 1e-11),
    (np, lambda v: np.array(v, np.float32), lambda v: np.array(v, np.int64), 4e-6),
    (xp_torch, lambda v: torch.tensor(v, dtype=torch.float64), lambda v: torch.tensor(v, dtype=torch.int64), 1e-11),
    (
        array_api_strict,
        lambda v: array_api_strict.asarray(v, dtype=array_api_strict.float64),
        lambda v: array_api_strict.asarray(v, dtype=array_api_strict.int64),
        1e-11,
    ),
]


@settings(max_examples=60, deadline=None)
@given(case=rows())
def test_every_signal_is_its_definition(case: tuple[Logits, list[int]]) -> None:
    logits, targets = case
    wanted = [defined(row, y) for row, y in zip(logits, targets, strict=True)]
    for xp, floats, ints, tolerance in BACKENDS:
        given_logits = floats([logits, logits])  # (S, T, V)
        evidence = evidence_of(given_logits, ints([targets, targets]), names=ALL_SIGNALS, xp=xp)
        for name in ALL_SIGNALS:
            got = evidence.signal(name)
            assert got.dtype == given_logits.dtype
            expected = [row[name] for row in wanted]
            np.testing.assert_allclose(
                np.from_dlpack(got), [expected, expected], rtol=tolerance, atol=tolerance, err_msg=name
            )


def test_only_what_is_named_is_computed_and_logprob_always() -> None:
    logits, ids = np.zeros((2, 30), np.float32), np.array([0, 7])
    evidence = evidence_of(logits, ids, names=("collision",), xp=np)
    assert {name for name in ALL_SIGNALS if getattr(evidence, name) is not None} == {"logprob", "collision"}
    np.testing.assert_allclose(evidence.signal("collision"), 1 / 30, rtol=1e-6)


def test_unknown_signal_is_refused_by_name() -> None:
    with pytest.raises(InvalidParameter, match=r"'surprise'.*logprob"):
        evidence_of(np.zeros((1, 3)), np.array([0]), names=("surprise",), xp=np)


@pytest.mark.parametrize("row", [[math.nan, 1.0, 2.0], [INF, 1.0, 2.0], [-INF, -INF, -INF], [0.0, -INF, 1.0]])
def test_what_cannot_be_scored_has_no_finite_logprob(row: list[float]) -> None:
    logits = torch.tensor([row, [0.0, 1.0, 2.0]])
    evidence = evidence_of(logits, torch.tensor([1, 1]), names=ALL_SIGNALS, xp=xp_torch)
    assert not evidence.logprob[0].isfinite()
    assert all(evidence.signal(name)[1].isfinite() for name in ALL_SIGNALS)


def test_gradient_is_that_of_the_logits_given() -> None:
    logits, ids = torch.randn(3, 9, dtype=torch.float64, requires_grad=True), torch.tensor([0, 4, 8])
    detached = evidence_of(logits.detach(), ids, names=ALL_SIGNALS, xp=xp_torch)
    assert not any(detached.signal(name).requires_grad for name in ALL_SIGNALS)
    [gradient] = torch.autograd.grad(evidence_of(logits, ids, names=(), xp=xp_torch).logprob.sum(), logits)
    torch.testing.assert_close(gradient, torch.nn.functional.one_hot(ids, 9) - logits.detach().softmax(-1))


def test_it_is_traced_whole() -> None:
    def run(logits: torch.Tensor, ids: torch.Tensor) -> list[Any]:
        evidence = evidence_of(logits, ids, names=ALL_SIGNALS, xp=xp_torch)
        return [evidence.signal(name) for name in ALL_SIGNALS]

    logits, ids = torch.randn(2, 4, 25), torch.randint(0, 25, (2, 4))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="eager", fullgraph=True)(logits, ids), run(logits, ids))
