"""`tokenpriority coverage`: how much of a file is stored.

Knows how the sums are printed. Reading is in `rows.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from tokenpriority.cli.rows import Rows
from tokenpriority.cli.waiting import model_fingerprints
from tokenpriority.client import Client
from tokenpriority.coverage import Coverage
from tokenpriority.exchange import Call
from tokenpriority.scores import ScoreFailure


def cover_file(source: Path, call: Call, *, as_json: bool, url: str, api_key: str | None) -> None:
    """Ask for every row and print what is stored of them together."""
    rows = Rows(source)
    with Client(url, api_key=api_key, model=call.model, service_class=call.service_class) as client:
        client.pin(model_fingerprints(client, call, url))
        coverage = client.coverage(rows, method=call.method, params=call.params, signals=call.signals, progress=True)
    if rows.ignored:
        typer.echo(f"columns not read: {', '.join(sorted(rows.ignored))}", err=True)
    typer.echo(json.dumps(sums(coverage)) if as_json else described(coverage, source))


def sums(coverage: Coverage) -> dict[str, int | bool]:
    """What --json prints."""
    return {
        "sequences": len(coverage.items),
        "stored_sequences": coverage.stored_sequences,
        "failed_sequences": coverage.failed_sequences,
        "tokens": coverage.tokens,
        "stored_tokens": coverage.stored_tokens,
        "complete": coverage.complete,
    }


def described(coverage: Coverage, source: Path) -> str:
    """One line, and one more if there are rows that cannot be scored."""
    text = (
        f"{source}: {coverage.stored_sequences:,} of {len(coverage.items):,} sequences are stored whole, "
        f"{share(coverage.stored_tokens, coverage.tokens)} of {coverage.tokens:,} tokens"
    )
    failures = [item for item in coverage.items if isinstance(item, ScoreFailure)]
    if failures:
        text += f"\n{len(failures):,} cannot be scored; the first, {failures[0].id!r}: {failures[0].error}"
    return text


def share(part: int, whole: int) -> str:
    """A share in percent, rounded down to a tenth, so that only all of it is 100.0 %; `-` of nothing."""
    return f"{1000 * part // whole / 10:.1f} %" if whole else "-"
