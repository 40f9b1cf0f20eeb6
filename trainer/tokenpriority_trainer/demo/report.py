"""`report.html`: the table, the curves and one example's tokens, in one file that needs nothing else.

Knows HTML. Knows nothing of how a figure was measured, and says nothing of who won.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tokenpriority_trainer.demo.chart import Points, line_chart
from tokenpriority_trainer.demo.results import COLUMNS, Results


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the shown example, as the server scored it."""

    text: str
    logprob: float
    """NaN for the first, which nothing predicts."""
    rank: float
    priority: float
    spoilt: str
    """`noise`, `idiom` or empty: what was done to the token when the set was made."""


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; max-width: 44rem; display: block; } svg text { font: 12px system-ui, sans-serif; fill: #444; }
svg .grid { stroke: #e4e4e4; }
pre { font: 14px/1.75 ui-monospace, monospace; background: #fafafa; border: 1px solid #ddd; padding: 1rem;
      white-space: pre-wrap; overflow-wrap: anywhere; }
pre span, .key span { border-radius: 3px; padding: .1em 0; }
.up { background: #d3efd9; } .none { background: #e6e6e6; color: #777; } .down { background: #f6b8ae; }
.noise { text-decoration: underline wavy #b06a00; text-underline-offset: 3px; }
.idiom { outline: 1px solid #a3271a; }
.note { color: #555; font-size: .9rem; }
"""


def html_report(results: Results, tokens: Sequence[Token], *, method: str) -> str:
    """The whole page. `tokens` are one example's, in order, with the priorities `method` gave them."""
    sections = [
        "<h1>tokenpriority: three trainings, one scoring server</h1>",
        _intro(results),
        "<h2>What was measured</h2>",
        _table(results),
        "<h2>Fine-tuning</h2>",
        _chart(results.curves, ("uniform", "positive", "signed"), "nll_pos", "NLL of tokens with priority > 0"),
        _chart(results.curves, ("signed",), "nll_neg", "NLL of tokens with priority < 0"),
        "<h2>Preparation</h2>",
        _chart(results.curves, ("base", "reference"), "loss", "loss, nats per token"),
        f"<h2>One example of the fine-tuning set, scored with {escape(method)}</h2>",
        _key(),
        f"<pre>{''.join(map(_token, tokens))}</pre>",
        _settings(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>tokenpriority demo</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>{chr(10).join(sections)}</body></html>\n"
    )


def _intro(results: Results) -> str:
    scale = results.settings["scale"]
    return (
        "<p>Text: this Python's standard library. The base model was trained on its top-level modules, the reference "
        "further on some files of its packages. The fine-tuning set is made of other files of the packages, the "
        "held-out text of others again. The set has "
        f"{scale['examples']} sequences of {scale['length']} tokens; in {scale['noisy_share']:.0%} of them "
        f"{scale['noise_rate']:.0%} of the tokens are replaced by random ones, and in {scale['idiom_share']:.0%} of "
        "them one line of an unsafe idiom is planted. All three trainings start from the base model and see the same "
        "sequences in the same order; their priorities come from one server over HTTP.</p>"
    )


def _table(results: Results) -> str:
    head = "".join(f'<th title="{escape(column.note)}">{escape(column.title)}</th>' for column in COLUMNS)
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{escape(results.cell(name, column))}</td>" for column in COLUMNS)
        + "</tr>"
        for name in results.names()
    )
    notes = "".join(f"<li>{escape(column.title)}: {escape(column.note)}</li>" for column in COLUMNS)
    spread = f"<li>mean ± standard deviation over {results.seeds} seeds</li>" if results.seeds > 1 else ""
    return f'<table><tr><th>weights</th>{head}</tr>{body}</table><ul class="note">{notes}{spread}</ul>'


def _chart(curves: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str], key: str, title: str) -> str:
    series: dict[str, Points] = {
        name: [(line["step"], line[key]) for line in curves[name] if line.get(key) is not None] for name in names
    }
    return line_chart(series, x_title="step", y_title=title)


def _key() -> str:
    return (
        '<p class="key note"><span class="up">priority above 0</span> · <span class="none">0: left out</span> · '
        '<span class="down">below 0: pushed down</span> · <span class="noise">a random token</span> · '
        '<span class="idiom">the planted idiom</span>. Hover over a token for its log-probability and rank under the '
        "reference, and its priority.</p>"
    )


def _token(token: Token) -> str:
    sign = "up" if token.priority > 0 else "down" if token.priority < 0 else "none"
    title = (
        "first token: no prediction"
        if token.logprob != token.logprob
        else f"logprob {token.logprob:.2f} · rank {token.rank:.0f} · priority {token.priority:+.3g}"
    )
    return f'<span class="{f"{sign} {token.spoilt}".strip()}" title="{title}">{escape(token.text)}</span>'


def _settings(results: Results) -> str:
    stages = "".join(f"<li>{escape(name)}: {seconds:.1f} s</li>" for name, seconds in results.stages.items())
    facts = "".join(
        f"<li>{escape(str(key))}: {escape(str(value))}</li>"
        for group in results.settings.values()
        for key, value in group.items()
    )
    return f'<h2>Time and settings</h2><ul class="note">{stages}</ul><ul class="note">{facts}</ul>'
