"""Batches: every sequence once, within the budget, with bounded padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenpriority_service.engines.batches import plan_batches

bounds_of = st.lists(st.integers(1, 500), max_size=3).map(sorted)


@given(st.lists(st.integers(1, 500), max_size=80), st.integers(1, 2000), bounds_of)
def test_every_sequence_is_in_one_batch_that_keeps_the_rules(
    lengths: list[int], max_tokens: int, bounds: list[int]
) -> None:
    batches = plan_batches(lengths, max_tokens, bounds)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert len(sizes) == 1 or len(sizes) * max(sizes) <= max_tokens
        assert 4 * min(sizes) >= 3 * max(sizes)
        assert all(max(sizes) <= bound or min(sizes) > bound for bound in bounds)


def test_batches_run_longest_first_and_full() -> None:
    assert plan_batches([4, 8, 6, 8, 8], 16) == [[1, 3], [4, 2], [0]]
    assert plan_batches([100, 90, 90], 50) == [[0], [1], [2]]


def test_a_bound_parts_neighbours() -> None:
    assert plan_batches([33, 32, 31], 1000, [32]) == [[0], [1, 2]]
    assert plan_batches([33, 32, 31, 30], 1000, [30, 32]) == [[0], [1, 2], [3]]
    assert plan_batches([33, 32, 31], 1000) == [[0, 1, 2]]
