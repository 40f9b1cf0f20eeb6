"""Line charts as inline SVG.

Knows points, axes and colours. Knows nothing of what the points mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 44
COLOURS = ("#1f77b4", "#d55e00", "#2a8c55", "#7b3fa0")
"""One per series, in order; distinct to colour-blind readers, and each series has its own dashes too."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


def line_chart(series: Mapping[str, Points], *, x_title: str, y_title: str) -> str:
    """An <svg> with one line per named series, a legend and both axes. Raises ValueError if there is nothing to draw.

    Points are finite and in order of x; at most four series.
    """
    points = [point for each in series.values() for point in each]
    if not points:
        raise ValueError("a chart needs at least one point")
    if len(series) > len(COLOURS):
        raise ValueError(f"a chart takes at most {len(COLOURS)} series, got {len(series)}")
    x_ticks = _ticks([x for x, _ in points])
    y_ticks = _ticks([y for _, y in points])
    place = _Scale(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    body = [_grid(place, x_ticks, y_ticks), _titles(x_title, y_title)]
    for number, (name, each) in enumerate(series.items()):
        body += [_line(place, each, number), _legend(name, number)]
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_title)}">{"".join(body)}</svg>'


class _Scale:
    """From figures to coordinates."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self._x, self._y = (x_low, x_high), (y_low, y_high)

    def x(self, value: float) -> float:
        low, high = self._x
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self._y
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _ticks(values: Sequence[float]) -> list[float]:
    """Round figures, 1, 2 or 5 times a power of ten apart, of which the first and last enclose the values."""
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1.0)
    raw = span / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _grid(place: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    parts = []
    for tick in y_ticks:
        y = place.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    y = _HEIGHT - _BOTTOM + 16
    parts += [f'<text x="{place.x(tick)}" y="{y}" text-anchor="middle">{tick:g}</text>' for tick in x_ticks]
    return "".join(parts)


def _titles(x_title: str, y_title: str) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>'
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )


def _line(place: _Scale, points: Points, number: int) -> str:
    path = " ".join(f"{place.x(x)},{place.y(y)}" for x, y in points)
    return (
        f'<polyline fill="none" stroke="{COLOURS[number]}" stroke-width="2" stroke-dasharray="{_DASHES[number]}" '
        f'points="{path}"/>'
    )


def _legend(name: str, number: int) -> str:
    x, y = _WIDTH - _RIGHT - 130, _TOP + 10 + 18 * number
    return (
        f'<line x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}" stroke="{COLOURS[number]}" stroke-width="2" '
        f'stroke-dasharray="{_DASHES[number]}"/><text x="{x + 32}" y="{y}">{escape(name)}</text>'
    )
