"""Charts enclose, keep and place what they are given."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from html_page import Page
from tokenpriority_trainer.chart import bar_chart, line_chart, thinned, ticks
from tokenpriority_trainer.sample import Bar

FINITE = st.floats(-1e30, 1e30)


@given(FINITE, FINITE)
def test_ticks_enclose_what_they_are_for(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high)
    assert 2 <= len(found) <= 13
    assert found == sorted(set(found))
    slack = 1e-6 * (found[-1] - found[0])
    assert found[0] <= low + slack
    assert found[-1] >= high - slack


@given(st.lists(FINITE, min_size=1, max_size=3000))
def test_a_long_line_keeps_its_spikes(values: list[float]) -> None:
    points = list(enumerate(values))
    kept = thinned(points)
    assert len(kept) <= 600
    assert min(y for _, y in kept) == min(values)
    assert max(y for _, y in kept) == max(values)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})


def test_a_line_is_drawn_to_scale() -> None:
    svg = line_chart([(0, 1.0), (5, 3.0), (10, 2.0)], name="a", title="t", told="d", x_title="x", y_title="<y>")
    (drawn,) = [found["points"] or "" for tag, found in Page(svg).attributes if tag == "polyline"]
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in drawn.split())
    assert math.isclose(x1 - x0, x2 - x1)
    assert math.isclose((y0 - y1) / (y0 - y2), 2, rel_tol=1e-2)
    assert y1 < y2 < y0, "up is up"
    with pytest.raises(ValueError, match="at least one point"):
        line_chart([], name="a", title="t", told="d", x_title="x", y_title="y")


def test_bars_are_drawn_to_scale_and_none_is_lost() -> None:
    bars = [Bar(-2.0, -1.0, 1), Bar(-1.0, 0.0, 0), Bar(0.0, 1.0, 100_000), Bar(1.0, 2.0, 50_000)]
    page = Page(bar_chart(bars, name="a", title="t", told="d", x_title="x", y_title="y"))
    drawn = [found for tag, found in page.attributes if tag == "rect"]
    assert [found["class"] for found in drawn] == ["down", "up", "up"]
    few, most, half = (float(found["height"] or 0) for found in drawn)
    assert few == 1
    assert math.isclose(most, 2 * half, rel_tol=1e-2)
    left = [float(found["x"] or 0) for found in drawn]
    assert math.isclose(left[1] - left[0], 2 * (left[2] - left[1]), abs_tol=0.2)
    with pytest.raises(ValueError, match="at least one bar"):
        bar_chart([], name="a", title="t", told="d", x_title="x", y_title="y")
