"""`tokenpriority score`: a file of sequences in, a Parquet file of scores out.

Knows what makes two runs the same job: the file's bytes, the model's and the base's fingerprints, the method with its
version and parameters, the signals, whether nothing is computed. Reading is in `rows.py`, writing in `parts.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tokenpriority.cli.parts import Parts
from tokenpriority.cli.rows import Rows
from tokenpriority.cli.waiting import model_fingerprints
from tokenpriority.client import Client
from tokenpriority.exchange import Call

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def score_file(source: Path, out: Path, call: Call, *, url: str, api_key: str | None) -> int:
    """Score every row, going on where an earlier run was stopped; the exit status."""
    rows = Rows(source)
    with Client(url, api_key=api_key, model=call.model, service_class=call.service_class) as client:
        fingerprints = model_fingerprints(client, call, url)
        client.pin(fingerprints)
        parts = Parts(out, describe_job(rows, call, client, fingerprints), call.signals)
        if parts.complete:
            typer.echo(f"{out} is complete already")
            return 0
        rows.skip = parts.rows
        if rows.skip:
            typer.echo(f"going on after row {rows.skip}", err=True)
        try:
            results = client.score_many(
                rows,
                method=call.method,
                params=call.params,
                signals=call.signals,
                progress=True,
                errors="return",
                cached_only=call.cached_only,
            )
            for result in results:
                parts.add(result)
        except KeyboardInterrupt:
            typer.echo(f"stopped: {parts.rows} rows are kept; the same command goes on after them", err=True)
            return INTERRUPTED
    count, failed = parts.finish()
    if rows.ignored:
        typer.echo(f"columns not read: {', '.join(sorted(rows.ignored))}", err=True)
    typer.echo(f"{out}: {count} rows, {failed} failed" + (" (see the column `error`)" if failed else ""))
    return 0


def describe_job(rows: Rows, call: Call, client: Client, fingerprints: dict[str, str]) -> dict[str, Any]:
    """What a second run must share to go on with the first."""
    versions = {method.name: method.version for method in client.methods()}
    return {
        "source": rows.digest,
        "model": call.model,
        "fingerprints": fingerprints,
        "method": {"name": call.method, "version": versions.get(call.method), "params": dict(call.params or {})},
        "signals": list(call.signals),
        "cached_only": call.cached_only,  # its rows that are not stored are failures, which no other run should keep
    }
