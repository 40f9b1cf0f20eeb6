"""A speed told from calls of a known engine."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority_service.scheduling.speed import CALLS, FEW, GROWTH, Speed

FIRST = 1000
seconds = st.floats(0.001, 10.0)
per_token = st.floats(1e-6, 1e-2)


def told(anyway: float, each: float, sizes: list[int], noise: float = 0.0) -> Speed:
    """What calls of an engine say that takes `anyway` and `each` per token."""
    speed, dice = Speed(FIRST), random.Random(0)
    for size in sizes:
        speed.note(size, (anyway + each * size) * (1 + noise * dice.uniform(-1, 1)))
    return speed


@given(seconds, per_token, st.permutations([100, 120, 150, 200, 600, 700, 800, 900] * 3))
def test_what_a_call_takes_anyway_is_told_from_what_a_token_takes(anyway: float, each: float, sizes: list[int]) -> None:
    speed = told(anyway, each, sizes)
    assert speed.seconds(1000) == pytest.approx(1000 * each, rel=1e-6, abs=1e-9 * anyway)
    assert speed.tokens_in(0.1) == pytest.approx(max(min(0.1 / each, GROWTH * max(sizes)), 1), rel=1e-3, abs=1)


def test_single_outliers_do_not_count() -> None:
    speed = told(0.005, 1e-4, [100, 1000] * 10, noise=0.1)
    before = speed.seconds(1000)
    for _ in range(FEW):
        speed.note(1000, 30.0)
    assert speed.seconds(1000) == pytest.approx(before, rel=0.2)


@given(seconds, per_token)
def test_tiny_calls_do_not_hide_what_an_engine_can_do(anyway: float, each: float) -> None:
    speed = told(anyway, each, [1000, 2000] * FEW + [2] * (CALLS - 2))
    assert speed.seconds(1000) == pytest.approx(1000 * each, rel=1e-6, abs=1e-9 * anyway)


def test_an_engine_whose_calls_are_all_alike_is_tried_with_more_until_it_is_told() -> None:
    """Otherwise one far away would be given ever less."""
    speed = told(0.2, 0.0, [2000] * (2 * FEW - 1))
    assert speed.tokens_in(0.02) == 200
    speed.note(2000, 0.2)
    assert speed.tokens_in(0.02) == GROWTH * 2000
    speed.note(GROWTH * 2000, 0.2)
    assert speed.seconds(1000) == pytest.approx(0, abs=1e-9)
    slow = told(0.0, 1e-4, [2000] * 2 * FEW + [GROWTH * 2000])
    assert slow.tokens_in(0.02) == 200


def test_without_experience_the_first_size_holds() -> None:
    speed = Speed(FIRST)
    assert (speed.tokens_in(0.05), speed.seconds(1000)) == (FIRST, 0.0)
    speed.note(10, 0.0)
    assert speed.tokens_in(0.05) == FIRST, "no more than was promised"


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 100)), max_size=60))
def test_any_calls_give_a_size_of_at_least_one_token(calls: list[tuple[int, float]]) -> None:
    speed = Speed(FIRST)
    for tokens, took in calls:
        speed.note(tokens, took)
        assert 1 <= speed.tokens_in(0.05) <= max(GROWTH * max(size for size, _ in calls), FIRST)
        assert speed.seconds(tokens) >= 0
