"""`tokenpriority methods`: what can be asked for.

Knows how the registry is printed: as tables for people, as JSON for programs, as Markdown for documents. The rows are
`methods/table.py`'s.
"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Column, Table

from tokenpriority import wire
from tokenpriority.methods import describe
from tokenpriority.methods.table import groups, markdown


def print_json() -> None:
    """Print every field of every method of this package."""
    typer.echo(wire.encode(describe(), wire.JSON).decode())


def print_markdown() -> None:
    """Print the registry as Markdown."""
    typer.echo(markdown(), nl=False)


def print_tables() -> None:
    """Print one table per group of methods."""
    console = Console(soft_wrap=False)
    for title, rows in groups():
        table = Table(
            Column("method", no_wrap=True),
            "family, sign, scope",
            "reads, runs on",
            "weight, divided by",
            "parameters",
            "source, verified by",
            show_lines=True,
            title=title,
            title_justify="left",
        )
        for row in rows:
            table.add_row(
                row.name,
                f"{row.family}\n{row.sign}\n{row.scope}",
                f"{row.reads}\n{row.runs_on.replace('`', '')}",
                f"{row.weight}\n/ {row.divided_by}",
                "\n".join(row.parameters),
                f"{row.citation}\n{row.verified}",
            )
        console.print(table, markup=False)
