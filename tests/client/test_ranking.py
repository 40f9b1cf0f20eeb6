"""The exact k-th largest of many values, against numpy's sort and partition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.ranking import Ranking

VALUES = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), np.inf, -np.inf, 1 + 2.0**-23]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=80), st.data())
def test_ranking_is_partition(values: list[float], data: st.DataObject) -> None:
    """Ties, both zeros, subnormals, infinities, and values that share their upper 16 bits."""
    k = data.draw(st.integers(1, len(values)))
    array = np.array(values, np.float32)
    parts = np.array_split(array, data.draw(st.integers(1, 3)))
    with Ranking() as ranking:
        for part in parts:
            ranking.add(part)
        found, count = ranking.largest(k)
        assert len(ranking) == len(values)
    assert found == np.partition(array, len(array) - k)[len(array) - k]
    assert count == (array >= found).sum()


def test_ranking_of_many_values_over_several_chunks() -> None:
    values = np.round(np.random.default_rng(5).normal(0, 3, 300_001), 3).astype(np.float32)
    ordered = np.sort(values)[::-1]
    with Ranking() as ranking:
        for part in np.array_split(values, 7):
            ranking.add(part)
        for k in (1, 2, 150_000, 180_000, 300_000, 300_001):
            assert ranking.largest(k) == (ordered[k - 1], (values >= ordered[k - 1]).sum())


def test_what_has_no_rank_is_refused() -> None:
    with Ranking() as ranking:
        ranking.add(np.array([1, 2], np.float32))
        with pytest.raises(ValueError, match="NaN"):
            ranking.add(np.array([1, np.nan], np.float32))
        for k in (0, 3):
            with pytest.raises(ValueError, match=f"from 1 to the number of values 2, got {k}"):
                ranking.largest(k)
