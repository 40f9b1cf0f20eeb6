from __future__ import annotations

import math
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority_trainer.demo.chart import line_chart
from tokenpriority_trainer.demo.report import Token, html_report
from tokenpriority_trainer.demo.results import COLUMNS, Results

TOKENS = [
    Token("def <b>&", math.nan, math.nan, 0.0, ""),
    Token(' "x"', -0.25, 1.0, 1.0, ""),
    Token("\n    ", -9.5, 412.0, 0.0, "noise"),
    Token("os.system(</script>", -2.0, 7.0, -1.0, "idiom"),
]
VOID = {"meta"}


class Page(HTMLParser):
    """Raises on tags that do not match, and collects the example's tokens and every table cell."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.tokens: list[tuple[dict[str, str | None], str]] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "span" and "pre" in self.open:
            self.tokens.append((dict(attrs), ""))
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["span"] and "pre" in self.open:
            attrs, text = self.tokens[-1]
            self.tokens[-1] = (attrs, text + data)
        elif self.open[-1:] == ["td"]:
            self.cells[-1] += data


@pytest.fixture
def page(results: Results) -> Page:
    page = Page()
    page.feed(html_report(results, TOKENS, method="prift_mass <tau>"))
    page.close()
    return page


def test_every_tag_is_closed(page: Page) -> None:
    assert page.open == []
    assert {"table", "svg", "polyline", "pre", "style"} <= page.seen


def test_nothing_is_loaded_from_elsewhere(page: Page, results: Results) -> None:
    assert not page.seen & {"script", "link", "img", "iframe", "b"}
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    text = html_report(results, TOKENS, method="m")
    assert "url(" not in text
    assert "@import" not in text


def test_every_token_is_shown_as_it_is(page: Page) -> None:
    assert [text for _, text in page.tokens] == [token.text for token in TOKENS]


def test_a_token_has_its_figures_and_its_colour(page: Page) -> None:
    titles = [attrs["title"] for attrs, _ in page.tokens]
    assert titles[0] == "first token: no prediction"
    assert titles[3] == "logprob -2.00 · rank 7 · priority -1"
    assert [attrs["class"] for attrs, _ in page.tokens] == ["none", "up", "none noise", "down idiom"]


def test_the_table_has_every_model_and_figure(page: Page, results: Results) -> None:
    expected = [[name, *(results.cell(name, column) for column in COLUMNS)] for name in results.names()]
    assert page.cells == [cell for row in expected for cell in row]


def drawn(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every line, in coordinates of the picture."""
    return [
        [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]  # type: ignore[misc]
        for line in ElementTree.fromstring(svg).iter("polyline")
    ]


FIGURES = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 6))


@given(values=st.lists(st.tuples(st.integers(0, 10_000), FIGURES), min_size=1, max_size=30))
def test_a_chart_keeps_every_point_inside_its_frame(values: list[tuple[int, float]]) -> None:
    points = sorted(values)
    [line] = drawn(line_chart({"a": points}, x_title="step", y_title="loss"))
    assert len(line) == len(points)
    assert all(56 <= x <= 624 and 16 <= y <= 256 for x, y in line)
    # Higher figures stand higher; coordinates are rounded to a tenth.
    ordered = sorted(zip(points, line, strict=True), key=lambda pair: pair[0][1])
    assert all(low[1][1] >= high[1][1] for low, high in pairwise(ordered))


def test_a_chart_draws_where_the_axes_say() -> None:
    svg = line_chart({"a": [(0, 31.0), (10, 32.0)]}, x_title="step", y_title="loss")
    places = {text.text: text.attrib for text in ElementTree.fromstring(svg).iter("text")}
    [line] = drawn(svg)
    assert line[1][0] == float(places["10"]["x"])
    assert line[1][1] == float(places["32"]["y"]) - 4  # a label's baseline stands 4 below its line


def test_a_chart_escapes_names() -> None:
    svg = line_chart({"a<b>&": [(0, 1.0)]}, x_title="<x>", y_title='"y"')
    assert "a<b>&" in {text.text for text in ElementTree.fromstring(svg).iter("text")}


@pytest.mark.parametrize(
    ("series", "message"),
    [({}, "at least one point"), ({"a": []}, "at least one"), ({str(n): [(0, 0)] for n in range(5)}, "at most 4")],
)
def test_a_chart_that_cannot_be_drawn_is_refused(series: dict[str, list[tuple[float, float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line_chart(series, x_title="x", y_title="y")
