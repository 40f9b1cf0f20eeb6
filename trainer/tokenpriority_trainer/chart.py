"""Charts as inline SVG: one line, or the bars of a histogram.

Knows points, axes and what a screen reader is told. Colours are the page's, by class: `grid`, `curve`, `up`, `down`.
Knows nothing of what the figures mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tokenpriority_trainer.sample import Bar

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 16, 12, 44
_TINY = 1e-300
_COLUMNS = 300
"""Stretches of a longer curve, of each of which the least and the greatest value are drawn."""


def line_chart(points: Points, *, name: str, title: str, told: str, x_title: str, y_title: str) -> str:
    """An <svg> with one line. Points are finite and in order of x. Raises ValueError if there is none.

    `name` is an id of the page; `title` and `told`, a sentence on the figures, are what a screen reader says.
    """
    if not points:
        raise ValueError("a chart needs at least one point")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), whole=True), ticks(min(ys), max(ys))
    place = _Scale(x_ticks, y_ticks)
    drawn = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in thinned(points))
    body = f'<polyline class="curve" points="{drawn}"/>'
    if len(points) == 1:
        body = f'<circle class="curve" cx="{place.x(xs[0]):.1f}" cy="{place.y(ys[0]):.1f}" r="3"/>'
    return _svg(place.axes(x_ticks, y_ticks, x_title, y_title) + body, name, title, told)


def bar_chart(bars: Sequence[Bar], *, name: str, title: str, told: str, x_title: str, y_title: str) -> str:
    """An <svg> of adjoining bars from left to right, class `down` left of zero and `up` right of it.

    Raises ValueError if there is none. A bar that counts anything is at least one unit high.
    """
    if not bars:
        raise ValueError("a histogram needs at least one bar")
    y_ticks = ticks(0.0, float(max(bar.count for bar in bars)), whole=True)
    x_ticks = ticks(bars[0].low, bars[-1].high)
    place, floor, body = _Scale(x_ticks, y_ticks), _HEIGHT - _BOTTOM, []
    for bar in bars:
        if bar.count:
            top = min(place.y(bar.count), floor - 1)
            left, right = place.x(bar.low), place.x(bar.high)
            kind = "down" if bar.high <= 0 else "up"
            body.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 0.5, 0.5):.1f}" '
                f'height="{floor - top:.1f}"><title>{bar.low:g} to {bar.high:g}: {bar.count:,}</title></rect>'
            )
    return _svg(place.axes(x_ticks, y_ticks, x_title, y_title) + "".join(body), name, title, told)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round figures in order, 1, 2 or 5 times a power of ten apart; the first and last enclose `low` and `high`.

    At least two. `whole`: no fractions.
    """
    low, high = (0.0 if abs(value) < _TINY else value for value in (low, high))
    if high - low <= 1e-4 * max(abs(low), abs(high)):  # as good as level: it lies in the middle
        margin = 0.1 * abs(low) or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


def thinned(points: Points) -> Points:
    """The points, or of a long line the least and the greatest of every stretch, so that no spike is lost."""
    if len(points) <= 2 * _COLUMNS:
        return points
    size = math.ceil(len(points) / _COLUMNS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=_height), max(part, key=_height)}
        kept += sorted(ends)
    return kept


def _height(point: tuple[float, float]) -> float:
    return point[1]


class _Scale:
    """From figures to coordinates."""

    def __init__(self, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> None:
        self._x, self._y = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_title: str, y_title: str) -> str:
        """Grid lines, the figures at them and both titles."""
        parts, floor = [], _HEIGHT - _BOTTOM
        for tick in y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts += [
            f'<text x="{self.x(tick):.1f}" y="{floor + 16}" text-anchor="middle">{tick:g}</text>' for tick in x_ticks
        ]
        across, down = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + floor) / 2
        parts.append(f'<text x="{across}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>')
        parts.append(
            f'<text transform="translate(14 {down}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
        )
        return "".join(parts)


def _svg(body: str, name: str, title: str, told: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{name}-title {name}-told">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-told">{escape(told)}</desc>{body}</svg>'
    )
