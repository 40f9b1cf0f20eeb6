"""`tokenpriority score`: a file of sequences in, a Parquet file of scores out.

Knows what makes two runs the same job: the file's bytes, the model's and the base's fingerprints, the method with its
version and parameters, the signals. Reading is in `rows.py`, writing in `parts.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tokenpriority.cli.parts import Parts
from tokenpriority.cli.rows import Rows
from tokenpriority.client import Client
from tokenpriority.errors import NotFound, Unavailable
from tokenpriority.exchange import Call
from tokenpriority.methods import METHODS

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def score_file(source: Path, out: Path, call: Call, *, url: str, api_key: str | None) -> int:
    """Score every row, going on where an earlier run was stopped; the exit status."""
    rows = Rows(source)
    with Client(url, api_key=api_key, model=call.model) as client:
        if not client.ready():
            typer.echo(f"waiting for {url}", err=True)
        fingerprints = model_fingerprints(client, call)
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
                rows, method=call.method, params=call.params, signals=call.signals, progress=True, errors="return"
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
    }


def model_fingerprints(client: Client, call: Call) -> dict[str, str]:
    """Fingerprint of each model the call reads. Raises NotFound or Unavailable."""
    known = {model.name: model for model in client.models()}
    names = [call.model]
    if call.method in METHODS:
        base = getattr(METHODS[call.method].parse(call.params), "base", None)
        names += [base] if base else []
    for name in names:
        if name not in known:
            raise NotFound(f"model: no model {name!r}; the server has {', '.join(known) or 'none'}")
        if not known[name].ready:
            raise Unavailable(f"model {name!r} is not ready" + (f": {known[name].error}" if known[name].error else ""))
    return {name: known[name].fingerprint for name in names}
