"""The report of a real run: well-formed, self-contained, and its numbers are those of the run."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from html_page import Page, seen
from run_config import metrics
from signed_rows import counts, one_pass, rows, weights
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.report import CURVES, Share, Shown, html_report, number, visible
from tokenpriority_trainer.run import run
from tokenpriority_trainer.sample import PrioritySample


@pytest.fixture(scope="module")
def make(save_student: Callable[..., Path], text: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("report")
    return one_pass(folder, save_student(folder / "student"), text)


@pytest.fixture(scope="module")
def finished(make: Callable[..., Path]) -> Path:
    """The folder of a finished run."""
    config = make("finished")
    run(load_config(config))
    return config.with_suffix("")


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page((finished / "report.html").read_text(encoding="utf-8"))


def test_every_section_is_there_and_nothing_is_loaded(finished: Path, page: Page) -> None:
    assert {"run", "curves", "priorities", "positive", "negative"} <= set(page.by_id)
    assert not page.names & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not [found for _, found in page.attributes if {"src", "href", "srcset", "style"} & set(found)]
    assert not [name for _, found in page.attributes for name in found if name.startswith("on")]
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert ("html", {"lang": "en"}) in page.attributes


def test_a_screen_reader_has_words_for_every_chart_and_heads_for_every_table(page: Page) -> None:
    charts = [found for tag, found in page.attributes if tag == "svg"]
    assert len(charts) == 7
    for chart in charts:
        assert chart["role"] == "img"
        said = [page.by_id[name] for name in (chart["aria-labelledby"] or "").split()]
        assert len(said) == 2
        assert all(said)
    heads = [found for tag, found in page.attributes if tag == "th"]
    assert all(found.get("scope") in ("row", "col") for found in heads)
    sections = [found["aria-labelledby"] for tag, found in page.attributes if tag == "section"]
    assert all(page.by_id[name or ""] for name in sections)


def test_the_facts_are_those_of_the_summary(finished: Path, page: Page) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    said = page.by_id["in run"]
    assert "Complete." in said
    for part in (
        *summary["composition"],
        "Optimiser steps3",
        f"Tokens{summary['tokens']:,}",
        f"Seconds{number(summary['seconds'])}",
        f"Share of time waited{100 * summary['wait_seconds'] / summary['seconds']:.3g} %",
    ):
        assert part in said


def test_the_curves_are_those_of_the_metrics(finished: Path, page: Page) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3]
    drawn = [found["points"] or "" for tag, found in page.attributes if tag == "polyline"]
    assert [len(points.split()) for points in drawn] == [3] * 6
    for key, title, unit in CURVES[:6]:
        factor = 100 if key == "wait_share" else 1
        values = [factor * line[key] for line in lines]
        said = page.by_id[f"curve-{key}"]
        assert f"{title} ({unit}): " in said
        assert f"{number(values[0])} at step 1, {number(values[-1])} at step 3; " in said
        assert f"least {number(min(values))} at step {1 + values.index(min(values))}, " in said
        assert f"greatest {number(max(values))} at step {1 + values.index(max(values))}." in said
    assert "curve-eval_loss" not in page.by_id


def test_the_histogram_counts_every_weight_after_spans(page: Page) -> None:
    assert counts() in page.by_id["histogram"]
    every = [weight for weight, _ in weights() if weight]
    table = page.rows["bars"][1:]
    assert sum(int(count.replace(",", "")) for _, count in table) == len(every)
    for about, count in table:
        low, high = map(float, about.split(" to "))
        inside = [w for w in every if (low <= w < high if low >= 0 else low < w <= high)]
        assert len(inside) == int(count)
    assert "since step 1, from the one process of this run" in page.by_id["in priorities"]


@pytest.mark.parametrize(("sign", "name"), [(1, "positive"), (-1, "negative")])
def test_the_extreme_tokens_are_those_of_the_rows(page: Page, tokenizer: Any, sign: int, name: str) -> None:
    kept: dict[int, float] = {}
    for weight, token in sorted(weights(), key=lambda each: -sign * each[0]):
        if sign * weight > 0:
            kept.setdefault(token, weight)
    expected = list(kept.items())[:20]
    shown = page.rows[f"tokens-{name}"][1:]
    # Tokens of one weight (a span's) may come in any order.
    assert sorted((float(row[2]), int(row[1])) for row in shown) == sorted(
        (float(f"{weight:+.4g}"), token) for token, weight in expected
    )
    assert [abs(float(row[2])) for row in shown] == sorted((abs(float(row[2])) for row in shown), reverse=True)
    assert {row[3] for row in shown} == {"none"}
    assert {int(row[4]) for row in shown} <= {1, 2, 3}
    texts = [seen(visible(tokenizer.decode(row["input_ids"], clean_up_tokenization_spaces=False))) for row in rows()]
    for row in shown:
        alone = tokenizer.decode([int(row[1])], clean_up_tokenization_spaces=False)
        assert row[0] == seen(visible(alone.replace(" ", "␣")))
        assert row[0].replace("␣", " ") in row[5]
        assert any(row[5] in text for text in texts)


HOSTILE = '<script>alert("1")</script>\x07\u202e&amp;\ufffd\n\t\x00\u2028</td>'


def hostile(**changes: Any) -> Page:
    shown = Shown(HOSTILE, HOSTILE, HOSTILE, 5, -1.0, -2.5, 3)
    facts = {"method": HOSTILE, "params": {HOSTILE: HOSTILE}, "composition": [HOSTILE], HOSTILE: HOSTILE}
    given: dict[str, Any] = {"share": Share(1, 1), "stopped": HOSTILE, **changes}
    facts["fingerprints"] = {HOSTILE: HOSTILE}
    return Page(html_report(facts, [], PrioritySample(), [shown], [shown], **given))


def test_text_from_outside_is_shown_and_never_obeyed() -> None:
    page = hostile()
    assert "script" not in page.names
    row = page.rows["tokens-negative"][1]
    assert len(row) == 6
    assert row[0] == '<script>alert("1")</script><U+0007><U+202E>&amp;\ufffd↵⇥<U+0000><U+2028></td>'
    assert row[1:5] == ["5", "-1", "-2.500", "3"]
    assert row[5] == row[0] * 3


def test_what_a_sample_lacks_is_said() -> None:
    page = hostile(share=Share(1, 4))
    assert "No token was trained on." in page.by_id["in priorities"]
    sample = PrioritySample()
    sample.tokens, sample.first_step, sample.histogram.zeros = 4, 9, 4
    text = html_report({}, [{"step": 9, "loss": None}], sample, [], [], share=Share(1, 4))
    Page(text)
    assert "1 of 4 processes, the main one: the run was stopped" in text
    assert "the weights of the steps before step 9 are not counted here" in text
    assert "4 zero (100.00%)" in text
    assert "No trained token had a negative priority." in text
    assert text.count("No finite value was logged.") == 6


@given(st.text(st.characters(exclude_characters="<↵⇥", exclude_categories=["Cs"])))
def test_any_text_is_shown_in_full(text: str) -> None:
    shown = seen(visible(text))
    back = re.sub(r"<U\+([0-9A-F]+)>", lambda found: chr(int(found[1], 16)), shown)
    assert back.replace("↵", "\n").replace("⇥", "\t") == text
    assert all(character.isprintable() or unicodedata.category(character) == "Zs" for character in shown)
