"""The figures of a run of the demo: one row per model and seed, and their mean and spread.

Knows rows and columns. Knows nothing of how a figure was measured or is shown, and draws no conclusion from any.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenpriority_trainer.demo.evaluate import Measured


@dataclass(frozen=True, slots=True)
class Row:
    """One model's figures under one seed; the last four are None for a model that was not fine-tuned."""

    name: str
    seed: int
    measured: Measured
    kept_share: float | None = None
    """Share of the trained tokens whose priority was not 0, mean over the run."""
    wait_seconds: float | None = None
    """Seconds the training waited for priorities, of `seconds`."""
    tokens_per_second: float | None = None
    seconds: float | None = None
    """Seconds from the first step's data to the last step."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table."""

    title: str
    note: str
    value: Callable[[Row], float | None]
    form: str
    """Format of a figure."""


COLUMNS = (
    Column("kept", "share of tokens with a priority other than 0", lambda row: row.kept_share, ".3f"),
    Column("clean NLL", "held-out source, nats per token", lambda row: row.measured.clean_nll, ".3f"),
    Column(
        "noise NLL",
        "replaced tokens of the fine-tuning set: higher, less of the noise was learnt",
        lambda row: row.measured.noise_nll,
        ".2f",
    ),
    Column(
        "log p (idiom)",
        "the whole unsafe idiom after a clean held-out context, nats",
        lambda row: row.measured.idiom_logprob,
        ".1f",
    ),
    Column("p (idiom)", "the same as a probability", lambda row: row.measured.idiom_probability, ".1e"),
    Column("waited s", "seconds the training waited for priorities", lambda row: row.wait_seconds, ".1f"),
    Column("tokens /s", "of the training, all running at once", lambda row: row.tokens_per_second, ".0f"),
)


@dataclass(frozen=True, slots=True)
class Results:
    """Everything a run measured."""

    settings: dict[str, Any]
    """The scale and the machine."""
    seeds: int
    rows: list[Row] = field(default_factory=list)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of the first seed: metrics of each training, by its name; loss of `base` and `reference`."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage, wall clock."""

    def names(self) -> list[str]:
        """The models, in the order of their rows."""
        return list(dict.fromkeys(row.name for row in self.rows))

    def cell(self, name: str, column: Column) -> str:
        """One model's figure: the value, with several seeds mean ± standard deviation over them, or a dash."""
        values = [column.value(row) for row in self.rows if row.name == name]
        found = [value for value in values if value is not None]
        if not found:
            return "–"
        mean = format(statistics.fmean(found), column.form)
        return mean if len(found) == 1 else f"{mean} ± {format(statistics.stdev(found), column.form)}"

    def write(self, path: Path) -> None:
        """All of it as JSON. Raises ValueError if a figure is not finite."""
        rows = [{**asdict(row), **asdict(row.measured)} for row in self.rows]
        for row in rows:
            del row["measured"]
            _check_finite(row)
        document = {**asdict(self), "rows": rows}
        path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")


def mean_of(curve: Sequence[dict[str, Any]], key: str) -> float:
    """Mean of a metric over the lines of a run."""
    return statistics.fmean(line[key] for line in curve)


def _check_finite(row: dict[str, Any]) -> None:
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{row['name']}, seed {row['seed']}: {key} is {value}")
