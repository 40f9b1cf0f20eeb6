"""`tokenpriority inspect`: a text with its tokens coloured by priority.

Knows colours and tables. The server says which characters each token stands for.
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenpriority.cli.waiting import brief_client
from tokenpriority.exchange import Call
from tokenpriority.scores import Scores

GREEN, RED, PALE = (0, 150, 60), (215, 45, 45), (235, 235, 235)
"""Background of the greatest positive and negative priority, and what both fade to."""


def inspect_text(text: str, completion: str | None, call: Call, *, table: bool, url: str, api_key: str | None) -> None:
    """Score one text and print it in colour, with a legend and, if asked, a table."""
    sequence = text if completion is None else {"prompt": text, "completion": completion}
    with brief_client(url, api_key, model=call.model) as client:
        [scores] = client.score(
            [sequence], method=call.method, params=call.params, signals=call.signals, offsets=call.offsets
        )
        fingerprint = client.fingerprints[call.model]
    console = Console(highlight=False)
    console.print(coloured(scores))
    if table:
        console.print(token_table(scores))
    console.print(legend(scores, f"{call.method} under {call.model} {fingerprint[:12]}"))


def style(priority: float, greatest: float) -> str:
    """The rich style of a priority: the background deepens with its share of the greatest absolute one."""
    if priority == 0:
        return "dim"
    share = min(abs(priority) / greatest, 1.0)
    full = GREEN if priority > 0 else RED
    red, green, blue = (round(pale + (deep - pale) * share) for pale, deep in zip(PALE, full, strict=True))
    return f"{'white' if share > 0.5 else 'black'} on rgb({red},{green},{blue})"


def coloured(scores: Scores) -> Text:
    """The text, each token in the style of its priority; characters of no token are dim."""
    (offsets, text), greatest = _characters(scores), _greatest(scores)
    out, shown = Text(), 0
    for (start, end), priority in zip(offsets, scores.priorities.tolist(), strict=True):
        # Tokens can share a character (the bytes of one emoji); it is shown once, with the first of them.
        if end > shown:
            out.append(text[shown : max(start, shown)], "dim")
            out.append(text[max(start, shown) : end], style(priority, greatest))
            shown = end
    return out.append(text[shown:], "dim")


def token_table(scores: Scores) -> Table:
    """Every token with its log-probability, rank and priority."""
    (offsets, text), greatest = _characters(scores), _greatest(scores)
    table = Table("#", "token", "id", "logprob", "rank", "priority")
    for number, ((start, end), token, logprob, rank, priority) in enumerate(
        zip(
            offsets,
            scores.token_ids.tolist(),
            scores.logprobs.tolist(),
            scores.signals["rank"].tolist(),
            scores.priorities.tolist(),
            strict=True,
        )
    ):
        scored = not np.isnan(logprob)
        table.add_row(
            str(number),
            Text(repr(text[start:end])),
            str(token),
            f"{logprob:.3f}" if scored else "-",
            f"{rank:.0f}" if scored else "-",
            Text(f"{priority:+.3f}" if priority else "0", style(priority, greatest)),
        )
    return table


def legend(scores: Scores, what: str) -> Text:
    """What the colours mean, and how the tokens share them."""
    greatest = _greatest(scores)
    out = Text("\n")
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        out.append(f" {share * greatest:+.2f} " if share else " 0 ", style(share * greatest, greatest))
    positive, negative = int((scores.priorities > 0).sum()), int((scores.priorities < 0).sum())
    zero = len(scores.priorities) - positive - negative
    return out.append(f"  {positive} tokens above zero, {negative} below, {zero} at zero; {what}", "dim")


def _characters(scores: Scores) -> tuple[list[tuple[int, int]], str]:
    if scores.offsets is None or scores.text is None:
        raise ValueError("the scores hold no characters: ask for a text, with offsets=True")
    return [(start, end) for start, end in scores.offsets.tolist()], scores.text


def _greatest(scores: Scores) -> float:
    return float(np.abs(scores.priorities).max()) or 1.0
