"""Schedule and clip against plain loops, in numpy and in torch."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat.torch as torch_namespace
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tokenpriority.composition import Schedule, clipped, scheduled
from tokenpriority.errors import InvalidParameter
from tokenpriority.methods import get_method

WEIGHTS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=12)
XP: dict[str, Any] = {"numpy": np, "torch": torch_namespace}


def lambdas(*, epochs: int, per_epoch: int, plus_t_min: bool, whole_run: bool) -> list[float]:
    """Forgetting's lambda as its training loop computes it, step by step, with or without its two fixes."""
    t_max, t_min, max_train_steps = 0.25, 1e-5, epochs * per_epoch
    found, completed = [], 0
    for _ in range(epochs):
        for step in range(per_epoch):
            counted = completed if whole_run else step
            found.append((t_max - t_min) * counted / max_train_steps + (t_min if plus_t_min else 0.0))
            completed += 1
    return found


@pytest.mark.parametrize("plus_t_min", [False, True])
@pytest.mark.parametrize("whole_run", [False, True])
def test_forgettings_lambda_over_three_epochs_with_and_without_its_fixes(plus_t_min: bool, whole_run: bool) -> None:
    start, end = (1e-5, 0.25) if plus_t_min else (0.0, 0.25 - 1e-5)
    schedule = Schedule(start=start, end=end, over="run" if whole_run else "epoch")
    if not plus_t_min and not whole_run:
        assert schedule == get_method("forgetting").schedule
    found = [schedule.factor(step, 30, epoch_steps=10) for step in range(30)]
    expected = lambdas(epochs=3, per_epoch=10, plus_t_min=plus_t_min, whole_run=whole_run)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_shapes_run_from_start_towards_end() -> None:
    linear, cosine = Schedule(start=1.0, end=0.0), Schedule(shape="cosine", start=1.0, end=0.0)
    assert [linear.factor(k, 4) for k in range(4)] == [1.0, 0.75, 0.5, 0.25]
    expected = [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert [cosine.factor(k, 4) for k in range(4)] == pytest.approx(expected, rel=1e-12)
    assert [Schedule(shape="constant", start=0.5).factor(k, 4) for k in range(4)] == [0.5] * 4
    assert linear.factor(0, 1) == 1.0


def test_an_epoch_of_unknown_length_is_an_error() -> None:
    with pytest.raises(InvalidParameter, match="needs the number of steps of an epoch"):
        Schedule(end=1.0, over="epoch").factor(0, 4)


@given(WEIGHTS, st.floats(0, 2), st.sampled_from(["negative", "positive", "both"]), st.sampled_from(["numpy", "torch"]))
def test_a_schedule_scales_the_weights_of_its_sign(weights: list[float], factor: float, sign: Any, kind: str) -> None:
    given_weights: Any = np.array(weights, np.float32) if kind == "numpy" else torch.tensor(weights)
    found = scheduled(given_weights, Schedule(end=1.0, sign=sign), factor, xp=XP[kind])
    hit = {"negative": {-1.0}, "positive": {1.0}, "both": {-1.0, 1.0}}[sign]
    expected = [w * factor if np.sign(w) in hit else w for w in weights]
    assert found.dtype == given_weights.dtype
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


@given(WEIGHTS, st.floats(-3, 0), st.floats(0, 3).filter(bool), st.sampled_from(["numpy", "torch"]))
def test_a_clip_bounds_weights_and_changes_no_sign(weights: list[float], low: float, high: float, kind: str) -> None:
    given_weights: Any = np.array(weights, np.float32) if kind == "numpy" else torch.tensor(weights)
    found = np.asarray(clipped(given_weights, (low, high), xp=XP[kind]))
    np.testing.assert_allclose(found, [min(max(w, low), high) for w in weights], rtol=1e-6, atol=1e-30)
    assert (found * np.array(weights) >= 0).all()


@pytest.mark.parametrize("clip", [(0.1, 1.0), (-1.0, -0.5), (0.0, 0.0), (-math.inf, 1.0), (-1.0, math.nan)])
def test_a_clip_that_would_change_signs_is_refused(clip: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="clip: must be two finite numbers, low <= 0 <= high"):
        clipped(np.ones(1), clip, xp=np)


@pytest.mark.parametrize(
    "values",
    [
        {"start": -0.1, "end": 1.0},
        {"end": 0.0},
        {"start": 1.0},
        {"shape": "constant", "start": 0.0},
        {"shape": "constant", "start": 1.0, "end": 1.0},
        {"end": math.inf},
        {"end": math.nan},
        {"end": True},
        {"end": "1"},
        {"shape": "square", "end": 1.0},
    ],
)
def test_schedules_out_of_their_limits_are_refused(values: Any) -> None:
    with pytest.raises(ValidationError):
        Schedule(**values)
