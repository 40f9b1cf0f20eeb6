"""`tokenpriority methods`: what can be asked for.

Knows how the registry is printed, as a table for people or as JSON for programs.
"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Column, Table

from tokenpriority import wire
from tokenpriority.methods import describe
from tokenpriority.schema import MethodInfo


def print_methods(as_json: bool) -> None:
    """Print every method of this package."""
    listed = describe()
    if as_json:
        typer.echo(wire.encode(listed, wire.JSON).decode())
        return
    table = Table(Column("method", no_wrap=True), "sign", "reads", "priority", "parameters", "source", show_lines=True)
    for method in listed.methods:
        table.add_row(method.name, method.sign, method.source, method.equation, _parameters(method), method.citation)
    Console(soft_wrap=False).print(table, markup=False)


def _parameters(method: MethodInfo) -> str:
    """`name=default` of each parameter, one a line."""
    return "\n".join(f"{name}={field.get('default')}" for name, field in method.params.get("properties", {}).items())
