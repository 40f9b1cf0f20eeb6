"""Projection between tokenizers: properties over random texts cut into characters and bytes, and each rule."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.projection import project

NAN = float("nan")
relaxed = settings(deadline=None)
TEXTS = st.text(st.sampled_from("ab \u00e9\u00df\u65e5\u672c\U0001f642\u0301"), min_size=1, max_size=24)
Offsets = list[tuple[int, int]]


def of_bytes(text: str, cuts: set[int]) -> Offsets:
    """Offsets of the tokens that these cuts make of the text's UTF-8 bytes: the characters each one touches."""
    owner = [index for index, character in enumerate(text) for _ in character.encode()]
    edges = [0, *sorted(c for c in cuts if 0 < c < len(owner)), len(owner)]
    return [(owner[a], owner[b - 1] + 1) for a, b in pairwise(edges)]


@st.composite
def cut(draw: st.DrawFn, text: str) -> Offsets:
    offsets = of_bytes(text, draw(st.sets(st.integers(1, 4 * len(text)))))
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return [(0, 0)] * before + offsets + [draw(st.sampled_from([(0, 0), (len(text), len(text))]))] * after


@st.composite
def cases(draw: st.DrawFn, unscored: bool = False) -> tuple[Offsets, Offsets, Any, Any]:
    text = draw(TEXTS)
    first, second = draw(cut(text)), draw(cut(text))
    n = len(first)
    logprobs = np.array(draw(st.lists(st.floats(-100, 0), min_size=n, max_size=n)))
    priorities = np.array(draw(st.lists(st.floats(-3, 3), min_size=n, max_size=n)))
    if unscored:
        silent = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        logprobs[silent], priorities[silent] = NAN, 0.0
    return first, second, logprobs, priorities


def spans(offsets: Offsets) -> list[bool]:
    return [end > start for start, end in offsets]


def share(offsets: Offsets) -> list[list[tuple[int, Fraction, Fraction]]]:
    """For each token the (character, from, to) it holds, in exact fractions, for offsets without gaps."""
    held: list[list[tuple[int, Fraction, Fraction]]] = [[] for _ in offsets]
    for character in range(max(end for _, end in offsets)):
        holders = [token for token, (start, end) in enumerate(offsets) if start <= character < end]
        for rank, token in enumerate(holders):
            held[token].append((character, Fraction(rank, len(holders)), Fraction(rank + 1, len(holders))))
    return held


def overlap(first: Any, second: Any) -> Fraction:
    return sum(
        (max(Fraction(0), min(b, d) - max(a, c)) for x, a, b in first for y, c, d in second if x == y), Fraction(0)
    )


@relaxed
@given(cases(unscored=True))
def test_each_token_gets_its_parts_as_counted_in_exact_fractions(case: Any) -> None:
    first, second, logprobs, priorities = case
    sums, means = project(first, second, logprobs=logprobs, priorities=priorities)
    held, wanted = share(first), share(second)
    for token, own in enumerate(wanted):
        if not own:
            continue
        shared = [(g, overlap(held[g], own)) for g in range(len(first)) if not np.isnan(logprobs[g])]
        shared = [(g, length) for g, length in shared if length]
        if not shared:
            assert np.isnan(sums[token])
            assert means[token] == 0
            continue
        total = sum(length for _, length in shared)
        lengths = {g: sum((b - a for _, a, b in held[g]), Fraction(0)) for g, _ in shared}
        assert sums[token] == pytest.approx(sum(logprobs[g] * float(x / lengths[g]) for g, x in shared), abs=1e-6)
        assert means[token] == pytest.approx(sum(priorities[g] * float(x / total) for g, x in shared), abs=1e-7)


@relaxed
@given(cases())
def test_no_part_of_the_total_is_lost(case: Any) -> None:
    first, second, logprobs, priorities = case
    sums, means = project(first, second, logprobs=logprobs, priorities=priorities)
    text = spans(second)
    assert np.isfinite(sums[text]).all()
    np.testing.assert_allclose(sums[text].sum(), logprobs[spans(first)].sum(), rtol=1e-13, atol=1e-11)
    assert np.isfinite(means).all()


@relaxed
@given(cases(unscored=True))
def test_the_total_of_the_scored_tokens_is_kept_around_unscored_ones(case: Any) -> None:
    first, second, logprobs, priorities = case
    sums, _ = project(first, second, logprobs=logprobs, priorities=priorities)
    expected = np.nansum(logprobs[spans(first)])
    np.testing.assert_allclose(np.nansum(sums[spans(second)]), expected, rtol=1e-13, atol=1e-11)


@relaxed
@given(cases(unscored=True), st.sampled_from([np.float32, np.float64]))
def test_equal_tokens_get_their_own_numbers_bit_by_bit(case: Any, dtype: Any) -> None:
    first, _, logprobs, priorities = case
    logprobs, priorities = logprobs.astype(dtype), priorities.astype(dtype)
    sums, means = project(first, first, logprobs=logprobs, priorities=priorities)
    assert (sums.dtype, means.dtype) == (dtype, dtype)
    np.testing.assert_array_equal(sums, logprobs)
    np.testing.assert_array_equal(means, priorities)


@relaxed
@given(st.data())
def test_a_stretch_that_both_sides_cut_alike_is_carried_bit_by_bit(data: st.DataObject) -> None:
    """What happens elsewhere in the text does not reach it."""
    left, middle, right = data.draw(TEXTS), data.draw(TEXTS), data.draw(TEXTS)

    def beside(offsets: Offsets, by: int) -> Offsets:
        return [(a + by, b + by) for a, b in offsets]

    def cuts(text: str) -> st.SearchStrategy[Offsets]:
        return st.sets(st.integers(1, 4 * len(text))).map(lambda edges: of_bytes(text, edges))

    same = beside(data.draw(cuts(middle)), len(left))
    end = len(left) + len(middle)
    first = [*data.draw(cuts(left)), *same, *beside(data.draw(cuts(right)), end)]
    second = [*data.draw(cuts(left)), *same, *beside(data.draw(cuts(right)), end)]
    values = np.random.default_rng(0).normal(size=(2, len(first))).astype(np.float32)
    found = project(first, second, logprobs=values[0], priorities=values[1])
    at, to = first.index(same[0]), second.index(same[0])
    for before, after in zip(values, found, strict=True):
        np.testing.assert_array_equal(after[to : to + len(same)], before[at : at + len(same)])


@relaxed
@given(cases(unscored=True))
def test_priorities_lie_within_those_they_are_the_mean_of(case: Any) -> None:
    first, second, logprobs, priorities = case
    _, means = project(first, second, logprobs=logprobs, priorities=priorities)
    held = share(first)
    for own, mean in zip(share(second), means, strict=True):
        touched = [priorities[g] for g in np.flatnonzero(~np.isnan(logprobs)) if overlap(held[g], own)]
        if touched:
            assert min(touched) <= mean <= max(touched)


@relaxed
@given(cases(unscored=True), st.floats(-5, 5))
def test_one_weight_for_all_stays_that_weight_exactly(case: Any, weight: float) -> None:
    first, second, logprobs, _ = case
    _, means = project(first, second, logprobs=logprobs, priorities=np.full(len(first), weight), unscored=weight)
    assert (means == weight).all()


@relaxed
@given(cases(), st.data())
def test_more_given_is_never_less_wanted(case: Any, data: st.DataObject) -> None:
    first, second, logprobs, priorities = case
    token = data.draw(st.integers(0, len(first) - 1))
    more = np.zeros(len(first))
    more[token] = 1.0
    sums, means = project(first, second, logprobs=logprobs, priorities=priorities)
    sums_more, means_more = project(first, second, logprobs=logprobs + more, priorities=priorities + more)
    grown = ~np.isnan(sums)
    assert (sums_more[grown] >= sums[grown] - 1e-9).all()
    assert (means_more >= means - 1e-12).all()


@relaxed
@given(cases(unscored=True), st.data())
def test_the_mask_zeroes_priorities_and_nothing_else(case: Any, data: st.DataObject) -> None:
    first, second, logprobs, priorities = case
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(second), max_size=len(second))))
    plain = project(first, second, logprobs=logprobs, priorities=priorities, unscored=2.0)
    masked = project(first, second, logprobs=logprobs, priorities=priorities, unscored=2.0, mask=mask)
    np.testing.assert_array_equal(masked[0], plain[0])
    np.testing.assert_array_equal(masked[1], np.where(mask, plain[1], 0))


def numbers(*rows: tuple[float, float]) -> dict[str, Any]:
    logprobs, priorities = zip(*rows, strict=True)
    return {"logprobs": np.array(logprobs, float), "priorities": np.array(priorities, float)}


@pytest.mark.parametrize(
    ("first", "second", "values", "sums", "means"),
    [
        # One token over two, and two over one.
        ([(0, 4)], [(0, 1), (1, 4)], [(-4, 0.5)], [-1, -3], [0.5, 0.5]),
        ([(0, 1), (1, 4)], [(0, 4)], [(-1, 0.0), (-3, 1.0)], [-4], [0.75]),
        # Signed weights average, and may cancel.
        ([(0, 2), (2, 4)], [(0, 4), (4, 4)], [(-1, 1.0), (-1, -1.0)], [-2, NAN], [0, 0]),
        # Three bytes of one character against two, in order.
        ([(0, 1)] * 3, [(0, 1)] * 2, [(-2, 0.0), (-4, 0.5), (-6, 1.0)], [-4, -8], [1 / 6, 5 / 6]),
        # The last bytes of a character together with what follows.
        ([(0, 2), (1, 3)], [(0, 1), (1, 2), (2, 3)], [(-3, 0.0), (-3, 1.0)], [-2, -2, -2], [0, 0.5, 1]),
        # Spaces that the reference's tokens leave out count with the token after them; at the end with the last.
        ([(0, 1), (2, 4)], [(0, 1), (1, 2), (2, 4)], [(-1, 0.0), (-3, 1.0)], [-1, -1, -2], [0, 1, 1]),
        ([(1, 2)], [(0, 1), (1, 2), (2, 3)], [(-3, 0.5)], [-1, -1, -1], [0.5, 0.5, 0.5]),
        ([(0, 1), (2, 4)], [(0, 1), (2, 4)], [(-1, 0.0), (-3, 1.0)], [-1, -3], [0, 1]),
        # What lies outside the wanted text is not handed out.
        ([(0, 2), (2, 4)], [(1, 3)], [(-4, 0.0), (-2, 1.0)], [-3], [0.5]),
        # Index 0 of a reference without a beginning-of-sequence token: its text has no score, and weighs nothing.
        ([(0, 2), (2, 4)], [(0, 1), (1, 3), (3, 4)], [(NAN, 0.0), (-2, 0.5)], [NAN, -1, -1], [9, 0.5, 0.5]),
        # Special tokens: by place and order. The beginning has no prediction; an end without a counterpart neither.
        ([(0, 0), (0, 1), (0, 0)], [(0, 0), (0, 1), (1, 1)], [(NAN, 0), (-1, 1), (-2, -1)], [NAN, -1, -2], [9, 1, -1]),
        ([(0, 0), (0, 1)], [(0, 1), (1, 1)], [(NAN, 0), (-1, 1)], [-1, NAN], [1, 9]),
        ([(0, 1), (0, 0)], [(0, 1), (1, 1), (1, 1)], [(-1, 1), (-2, 0.5)], [-1, -2, NAN], [1, 0.5, 9]),
        ([(0, 1), (1, 1), (1, 2)], [(0, 1), (1, 1), (1, 2)], [(-1, 1), (-2, 2), (-3, 3)], [-1, -2, -3], [1, 2, 3]),
        ([(0, 0)], [(0, 0)], [(-1, 1)], [-1], [1]),
        ([(0, 0)], [(0, 3)], [(-1, 1)], [NAN], [9]),
        ([(0, 3)], [(0, 0)], [(-1, 1)], [NAN], [9]),
        ([(0, 4), (1, 2)], [(0, 1), (1, 4)], [(-5, 0), (-5, 1)], [-2, -8], [0, 0.5]),  # the last reaches as far as any
        ([(0, 3)], np.zeros((0, 2), int), [(-1, 1)], [], []),
    ],
)
def test_rules(first: Offsets, second: Offsets, values: Any, sums: list[float], means: list[float]) -> None:
    found = project(first, second, **numbers(*values), unscored=9.0 if 9 in means else 0.0)
    np.testing.assert_allclose(found[0], sums, rtol=1e-9)
    np.testing.assert_allclose(found[1], means, rtol=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "changes", "what"),
    [
        ([(0, 1, 2)], [(0, 1)], {}, r"given: offsets are integers \[tokens, 2\], got int64 of shape \(1, 3\)"),
        ([(0, 1)], [(0.0, 1.0)], {}, r"wanted: offsets are integers .* got float64"),
        ([(0, 1)], [(0, 1), (2, 1)], {}, r"wanted: token 1: .* got \[2, 1\]"),
        ([(0, 1)], [(-1, 1)], {}, r"wanted: token 0: .* got \[-1, 1\]"),
        ([(0, 1)], [(0, 2**22 + 1)], {}, r"wanted: token 0: .* end <= 4194304 characters, got \[0, 4194305\]"),
        ([(0, 1)], [(1, 2), (0, 0), (0, 1)], {}, r"wanted: token 2 starts before the one before it: \[0, 1\]"),
        ([(0, 1)], [(0, 1)], {"logprobs": np.zeros(2)}, r"logprobs: must be of shape \(1,\), got \(2,\)"),
        ([(0, 1)], [(0, 1)], {"priorities": np.ones(1, int)}, "priorities: must be floating-point numbers, got int64"),
        ([(0, 1)], [(0, 1)], {"mask": np.ones(2, bool)}, r"mask: must be of shape \(1,\), got \(2,\)"),
        ([(0, 1)], [(0, 1)], {"priorities": np.array([NAN])}, "priorities: that of the scored token 0 is nan"),
    ],
)
def test_what_is_not_offsets_or_numbers_is_refused(first: Any, second: Any, changes: Any, what: str) -> None:
    values = {**numbers((-1.0, 1.0)), **changes}
    with pytest.raises(ValueError, match=what):
        project(first, second, **values)
