"""The table in the terminal.

Knows columns and how figures are set. Says what was measured, not who won.
"""

from __future__ import annotations

from rich import box
from rich.table import Table

from tokenpriority_trainer.demo.results import COLUMNS, Results


def table(results: Results) -> Table:
    """One row per model, one column per figure; a caption that says what each column is."""
    notes = [f"{column.title}: {column.note}" for column in COLUMNS]
    if results.seeds > 1:
        notes.append(f"mean ± standard deviation over {results.seeds} seeds of set and data order")
    out = Table(title="What was measured", caption="\n".join(notes), caption_justify="left", box=box.SIMPLE_HEAD)
    out.add_column("weights", no_wrap=True)
    for column in COLUMNS:
        out.add_column(column.title, justify="right")
    for name in results.names():
        out.add_row(name, *(results.cell(name, column) for column in COLUMNS))
    return out
