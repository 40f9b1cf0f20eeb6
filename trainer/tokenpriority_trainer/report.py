"""`report.html`: what a run was, how it went and what its weights were, in one file that needs nothing else.

Knows HTML. A pure function of facts, the lines of metrics.jsonl and a sample of the weights, its tokens already text.
Knows nothing of files, tokenizers or training.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tokenpriority_trainer.chart import Points, bar_chart, line_chart
from tokenpriority_trainer.sample import SHOWN, PrioritySample
from tokenpriority_trainer.style import STYLE

CURVES = (
    ("loss", "Loss", "nats, weighted"),
    ("nll_pos", "NLL of tokens with positive weight", "nats per token"),
    ("nll_neg", "NLL of tokens with negative weight", "nats per token"),
    ("grad_norm", "Norm of the gradient", "norm, before clipping"),
    ("learning_rate", "Learning rate", "as the optimiser takes it"),
    ("wait_share", "Share of wall time spent waiting for weights", "% of wall time"),
    ("eval_loss", "Evaluation loss", "nats per token"),
)
"""Key in metrics.jsonl, title and unit of each curve; the last is left out where there was no evaluation."""

_FACTS = {
    "method": "Method",
    "params": "Parameters",
    "steps": "Optimiser steps",
    "tokens": "Tokens",
    "seconds": "Seconds",
    "tokens_per_second": "Tokens per second",
    "wait_seconds": "Seconds waited for weights",
    "wait_share": "Share of time waited",
    "train_loss": "Mean loss",
    "resumed_at": "Resumed after steps",
}
_APART = {"complete", "composition", "fingerprint", "fingerprints"}
"""Facts with a place of their own."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One token as text, with the text on either side of it."""

    before: str
    token: str
    after: str
    token_id: int
    priority: float
    logprob: float | None
    step: int


@dataclass(frozen=True, slots=True)
class Share:
    """Of how many of the run's processes the sample holds the weights."""

    sampled: int
    processes: int

    def __str__(self) -> str:
        if self.processes == 1:
            return "the one process of this run"
        if self.sampled == self.processes:
            return f"all {self.processes} processes"
        return f"{self.sampled} of {self.processes} processes, the main one: the run was stopped"


def html_report(
    facts: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    sample: PrioritySample,
    positive: Sequence[Shown],
    negative: Sequence[Shown],
    *,
    share: Share,
    stopped: str | None = None,
) -> str:
    """The whole page.

    `facts` are those of summary.json, `metrics` the lines of metrics.jsonl in order, `positive` and `negative` the
    sample's extreme tokens, `stopped` the reason if training did not come to its end.
    """
    sections = [
        _section("run", "The run", _run(facts, stopped)),
        _section("curves", "Curves", "".join(_curve(metrics, *curve) for curve in CURVES)),
        _section("priorities", "Priorities", _priorities(sample, share)),
        _section("positive", f"The {SHOWN} most positive tokens", _tokens(positive, "positive", "up")),
        _section("negative", f"The {SHOWN} most negative tokens", _tokens(negative, "negative", "down")),
    ]
    title = f"Training report: {facts.get('method', 'no method')}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{_text(title)}</h1>\n{chr(10).join(sections)}</main></body></html>\n"
    )


def number(value: float) -> str:
    """A figure as the page writes it: whole from a thousand on, else four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def visible(text: str) -> str:
    """Text as HTML, escaped; characters that cannot be seen, or would move others, are written as <U+hex>.

    A line's end is an arrow. Bytes that are not UTF-8 came out of the tokenizer as U+FFFD, which is marked as well.
    """
    return "".join(_character(character) for character in text)


def _character(character: str) -> str:
    if character in "\n\t":
        return f'<span class="odd">{"↵" if character == chr(10) else "⇥"}</span>'
    if character == "\ufffd":
        return '<span class="odd" title="bytes that are no UTF-8">\ufffd</span>'
    # Control, format (such as the marks that turn the direction of writing), surrogate, private and line separators.
    if unicodedata.category(character)[0] == "C" or unicodedata.category(character) in ("Zl", "Zp"):
        return f'<span class="odd">&lt;U+{ord(character):04X}&gt;</span>'
    return escape(character)


def _text(value: Any) -> str:
    """A fact as HTML text."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bool) or value is None or not isinstance(value, int | float):
        return visible(json.dumps(value, ensure_ascii=False))
    return number(value) if isinstance(value, float) else f"{value:,}"


def _section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{body}</section>'


def _run(facts: Mapping[str, Any], stopped: str | None) -> str:
    state = "Complete."
    if stopped is not None:
        state = f"Stopped before its end: {visible(stopped)}. Tokens and waiting are as of the last logged step."
    known = {name: facts[name] for name in _FACTS if facts.get(name) not in (None, [], ())}
    if facts.get("seconds"):
        known.setdefault("tokens_per_second", facts.get("tokens", 0) / facts["seconds"])
        known["wait_share"] = f"{100 * facts.get('wait_seconds', 0.0) / facts['seconds']:.3g} %"
    rows = [(title, known[name]) for name, title in _FACTS.items() if name in known]
    rows += [(name, value) for name, value in facts.items() if name not in _APART and name not in _FACTS]
    rows += [(f"Fingerprint of {name}", value) for name, value in facts.get("fingerprints", {}).items()]
    table = "".join(f'<tr><th scope="row">{_text(title)}</th><td>{_text(value)}</td></tr>' for title, value in rows)
    steps = "".join(f"<li>{visible(step)}</li>" for step in facts.get("composition", []))
    return (
        f'<p>{state}</p><table class="facts">'
        f"<caption>Totals are of the whole run; a step "
        f"that was trained again after a resume counts once.</caption>{table}</table>"
        f"<h3>From priority to loss</h3><ol>{steps}</ol>"
    )


def _curve(metrics: Sequence[Mapping[str, Any]], key: str, title: str, unit: str) -> str:
    """One metric over the steps, with its figures in words; steps without a finite value are counted."""
    lines = [line for line in metrics if key in line]
    if not lines and key == "eval_loss":
        return ""
    factor = 100.0 if key == "wait_share" else 1.0
    points: Points = [(line["step"], factor * line[key]) for line in lines if line[key] is not None]
    if not points:
        return f'<figure id="curve-{key}"><figcaption><b>{title}</b>. No finite value was logged.</figcaption></figure>'
    told = _told(points, len(lines) - len(points))
    svg = line_chart(points, name=key, title=f"{title}, {unit}", told=told, x_title="optimiser step", y_title=unit)
    return f'<figure id="curve-{key}"><figcaption><b>{title}</b> ({unit}): {told}</figcaption>{svg}</figure>'


def _told(points: Points, lost: int) -> str:
    """The figures of a curve in a sentence."""
    (first, start), (last, end) = points[0], points[-1]
    least, greatest = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    return (
        f"{number(start)} at step {first}, {number(end)} at step {last}; least {number(least[1])} at step {least[0]}, "
        f"greatest {number(greatest[1])} at step {greatest[0]}."
        + (f" At {lost} logged steps the value was not finite." if lost else "")
    )


def _priorities(sample: PrioritySample, share: Share) -> str:
    histogram, total = sample.histogram, sample.tokens
    if not total:
        return "<p>No token was trained on.</p>"
    counts = (("positive", histogram.positive), ("zero", histogram.zeros), ("negative", histogram.negative))
    parts = ", ".join(f"{count:,} {sign} ({count / total:.2%})" for sign, count in counts)
    told = f"{total:,} weights: {parts}. Zeros are in no bar."
    about = (
        f"<p>Counted is the weight of every trained token since step {sample.first_step}, from {share}: with the "
        "caller's spans laid over, before live methods, schedule and clip. Where a method reads the labels itself, "
        f"it is their sign.</p>{_resumed(sample)}"
    )
    bars = histogram.bars()
    if not bars:
        return f'{about}<figure id="histogram"><figcaption>{told}</figcaption></figure>'
    svg = bar_chart(
        bars, name="bars", title="Histogram of priorities", told=told, x_title="priority", y_title="trained tokens"
    )
    rows = "".join(
        f'<tr><th scope="row">{bar.low:g} to {bar.high:g}</th><td>{bar.count:,}</td></tr>' for bar in bars if bar.count
    )
    return (
        f'{about}<figure id="histogram"><figcaption>{told}</figcaption>{svg}</figure><details><summary>The bars as a '
        'table</summary><table id="bars"><caption>The end nearer to zero is included.</caption><thead><tr>'
        f'<th scope="col">priority</th><th scope="col">tokens</th></tr></thead><tbody>{rows}</tbody></table></details>'
    )


def _resumed(sample: PrioritySample) -> str:
    if sample.first_step in (None, 1):
        return ""
    return (
        f"<p>The run was resumed: the weights of the steps before step {sample.first_step} are not counted here. "
        "The curves have all steps.</p>"
    )


def _tokens(shown: Sequence[Shown], sign: str, kind: str) -> str:
    if not shown:
        return f"<p>No trained token had a {sign} priority.</p>"
    heads = ("token", "id", "priority", "reference logprob", "step", "in context")
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    rows = "".join(
        f'<tr><th scope="row"><code>{visible(each.token.replace(" ", "␣"))}</code></th><td>{each.token_id}</td>'
        f"<td>{each.priority:+.4g}</td><td>{'none' if each.logprob is None else f'{each.logprob:.3f}'}</td>"
        f'<td>{each.step}</td><td class="text">{visible(each.before)}<mark class="{kind}">{visible(each.token)}</mark>'
        f"{visible(each.after)}</td></tr>"
        for each in shown
    )
    return (
        f'<table id="tokens-{sign}"><caption>Each token of the vocabulary at most once, where its priority was most '
        f"extreme; of equal ones the first seen.</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
