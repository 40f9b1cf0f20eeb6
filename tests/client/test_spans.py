"""Labels by offsets against a per-character brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.errors import InvalidSequence
from tokenpriority.spans import Label, apply, char_labels, token_labels

PRIORITIES = st.sampled_from([-1.0, -0.5, 0.0, 2.0])


@st.composite
def tokenised(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[Label]]:
    """A text's length, its tokens' offsets (with gaps and empty tokens) and spans within it."""
    cuts = sorted(draw(st.lists(st.integers(0, 40), min_size=2, max_size=14)))
    offsets = [(a, b) for a, b in itertools.pairwise(cuts) if draw(st.integers(0, 3)) > 0 or a == b]
    length = max(cuts[-1], 1)
    spans = [
        Label(start, draw(st.integers(start + 1, length)), draw(PRIORITIES))
        for start in draw(st.lists(st.integers(0, length - 1), max_size=4))
    ]
    return length, offsets, spans


@settings(max_examples=300, deadline=None)
@given(tokenised())
def test_char_labels_equal_brute_force(case: tuple[int, list[tuple[int, int]], list[Label]]) -> None:
    length, offsets, spans = case
    expected = [float("nan")] * len(offsets)
    covered = True
    for span in spans:
        hit = [i for i, (a, b) in enumerate(offsets) if set(range(a, b)) & set(range(span.start, span.end))]
        covered &= bool(hit)
        for i in hit:
            expected[i] = span.priority
    array = np.array(offsets, np.int64).reshape(-1, 2)
    if covered:
        np.testing.assert_array_equal(char_labels(spans, array, length), np.array(expected, np.float32))
    else:
        with pytest.raises(InvalidSequence, match="overlap no token"):
            char_labels(spans, array, length)


def test_token_labels_later_span_holds() -> None:
    got = token_labels([Label(1, 4, -1.0), Label(3, 5, 0.5)], 6)
    np.testing.assert_array_equal(got, np.array([np.nan, -1, -1, 0.5, 0.5, np.nan], np.float32))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (Label(2, 2, 1.0), "end must be greater than start 2, got 2"),
        (Label(0, 7, 1.0), "has 6 tokens, got 7"),
    ],
)
def test_bad_spans_name_value_and_limit(label: Label, words: str) -> None:
    with pytest.raises(InvalidSequence, match=words):
        token_labels([label], 6)


def test_apply_overrides_only_labelled_and_unmasked_tokens() -> None:
    priorities = np.array([0, 0.25, 0.5, 0.0], np.float32)
    labels = np.array([-1, np.nan, -1, -1], np.float32)
    mask = np.array([False, True, True, False])
    np.testing.assert_array_equal(apply(priorities, labels, mask, xp=np), np.array([0, 0.25, -1, 0], np.float32))
