"""The rows of the study: kept as they come, so that a run goes on where it stopped; and shown as a table and a figure.

Knows rows, means over seeds and how figures are set. Knows nothing of models or methods.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

COLUMNS = ("clean NLL", "noise NLL", "log p(idiom)", "kept", "steps/s")
"""Lower is better; higher: less of the noise was learnt; lower is safer; share of non-zero weights; training alone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one training left, or that it could not be completed."""

    noise: float
    """Share of a noisy example's tokens that are replaced."""
    seed: int
    recipe: str
    clean_nll: float | None = None
    noise_nll: float | None = None
    idiom_logprob: float | None = None
    kept: float | None = None
    steps_per_second: float | None = None
    failure: str | None = None

    @property
    def key(self) -> tuple[float, int, str]:
        """What it is the finding of."""
        return self.noise, self.seed, self.recipe


class Findings:
    """All findings in one JSONL file; each line is on disk before the next training begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [Finding(**json.loads(line)) for line in lines]

    def has(self, key: tuple[float, int, str]) -> bool:
        """Whether it is known."""
        return any(row.key == key for row in self.rows)

    def add(self, row: Finding) -> None:
        """Remember one."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        self.rows.append(row)


def table(rows: Sequence[Finding]) -> str:
    """Markdown: one table a noise level, one row a recipe, means over seeds with the standard deviation of the NLLs."""
    parts = []
    for noise in sorted({row.noise for row in rows}):
        here = [row for row in rows if row.noise == noise]
        parts.append(f"Noise {noise:.0%} of the tokens of the noisy examples:\n")
        parts.append("| weights | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
        parts += [_line(name, [row for row in here if row.recipe == name]) for name in _names(here)]
        parts.append("")
    return "\n".join(parts)


def figure(rows: Sequence[Finding]) -> str:
    """An <svg> document: clean NLL of each recipe less that of `uniform`, mean over seeds, one mark a noise level."""
    names, levels = _names(rows), sorted({row.noise for row in rows})
    gain = {(name, noise): _gain(rows, name, noise) for name in names for noise in levels}
    known = [value for value in gain.values() if value is not None]
    limit = max(0.1, *(abs(value) for value in known)) if known else 0.1
    limit = min(limit, 1.0)  # what is worse than one nat is drawn at the edge
    width, left, step = 760, 230, 18
    middle, scale = left + (width - left - 20) / 2, (width - left - 20) / 2 / limit
    height = 60 + step * len(names)
    colours = ("#1f77b4", "#d55e00", "#2a8c55", "#7b3fa0")
    body = [f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="30" y2="{height - 20}" stroke="#999"/>']
    for number, noise in enumerate(levels):
        x = left + 150 * number
        body.append(
            f'<circle cx="{x}" cy="14" r="4" fill="{colours[number]}"/><text x="{x + 8}" y="18">{noise:.0%}</text>'
        )
    for row, name in enumerate(names):
        y = 42 + step * row
        body.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<line x1="{left}" x2="{width - 20}" y1="{y}" y2="{y}" stroke="#eee"/>')
        for number, noise in enumerate(levels):
            value = gain[name, noise]
            if value is not None:
                place = middle + scale * max(-limit, min(limit, value))
                body.append(f'<circle cx="{place:.1f}" cy="{y}" r="4" fill="{colours[number]}"/>')
    axis = f"clean NLL less that of uniform, nats (left is better; edges {limit:.2f})"
    body.append(f'<text x="{middle:.1f}" y="{height - 4}" text-anchor="middle">{axis}</text>')
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>{"".join(body)}</svg>\n'


def _names(rows: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(row.recipe for row in rows))


def _gain(rows: Sequence[Finding], name: str, noise: float) -> float | None:
    def mean(recipe: str) -> float | None:
        values = [row.clean_nll for row in rows if (row.recipe, row.noise) == (recipe, noise) and row.clean_nll]
        return statistics.fmean(values) if values else None

    own, uniform = mean(name), mean("uniform")
    return None if own is None or uniform is None else own - uniform


def _line(name: str, rows: Sequence[Finding]) -> str:
    failed = [row.failure for row in rows if row.failure]
    if len(failed) == len(rows):
        return f"| {name} | {failed[0]} |" + " |" * (len(COLUMNS) - 1)
    cells = [
        _cell(rows, lambda row: row.clean_nll, ".3f", spread=True),
        _cell(rows, lambda row: row.noise_nll, ".2f", spread=True),
        _cell(rows, lambda row: row.idiom_logprob, ".1f"),
        _cell(rows, lambda row: row.kept, ".2f"),
        _cell(rows, lambda row: row.steps_per_second, ".1f"),
    ]
    note = f" ({len(failed)} of {len(rows)} failed)" if failed else ""
    return f"| {name}{note} | " + " | ".join(cells) + " |"


def _cell(rows: Sequence[Finding], value: Callable[[Finding], float | None], form: str, *, spread: bool = False) -> str:
    values = [each for row in rows if (each := value(row)) is not None]
    if not values:
        return "-"
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {statistics.stdev(values):{form}}" if spread and len(values) > 1 else mean
