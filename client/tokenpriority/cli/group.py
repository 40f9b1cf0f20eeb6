"""Commands of other packages, found by entry point and imported only when one is run.

Knows the entry-point group `tokenpriority.commands` and how an error is told to a person. Knows none of the commands:
the lines below are what `--help` says of those this distribution brings, so that it need not import torch to say it.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from tokenpriority.errors import TokenPriorityError

GROUP = "tokenpriority.commands"
HELP = {
    "serve": "Serve log-probabilities and priorities of one or more models.",
    "verify": "Compare vLLM's evidence for a model with transformers', offline.",
    "keys": "Make, list, rotate and revoke the keys of teams.",
    "teams": "Set and list the limits of teams.",
    "db": "Make and check the tables of the server's database.",
    "train": "Train with weighted SFT against a scoring server.",
    "demo": "Run everything end to end on small models and print one table.",
}
EXTRA = {
    **dict.fromkeys(("serve", "verify", "keys", "teams", "db"), "service"),
    "train": "trainer",
    "demo": "service,trainer",
}
"""Extra of this distribution that a command needs."""


class Elsewhere(TyperCommand):
    """A command of another package, or a group of them (a typer.Typer), as `--help` lists it before its import."""

    def __init__(self, entry_point: EntryPoint) -> None:
        super().__init__(entry_point.name, help=HELP.get(entry_point.name, f"From {entry_point.module}."))
        self.entry_point = entry_point

    def load(self) -> Any:
        """The command itself. Exits with one sentence if a library it needs is not installed."""
        try:
            loaded = self.entry_point.load()
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0].startswith("tokenpriority"):
                raise  # a bug of ours, not a missing library
            extra = EXTRA.get(self.entry_point.name)
            hint = f': pip install "tokenpriority[{extra}]"' if extra else ""
            typer.echo(f"{self.entry_point.name} needs {error.name}{hint}", err=True)
            raise typer.Exit(1) from None
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        if isinstance(loaded, typer.Typer):
            one.add_typer(loaded, name=self.entry_point.name)
            return cast(TyperGroup, get_command(one)).commands[self.entry_point.name]
        one.command(self.entry_point.name)(loaded)
        return get_command(one)


class CommandGroup(TyperGroup):
    """The commands of this package and of the entry-point group; errors of the package end in one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Our own first, then the others by name."""
        own = super().list_commands(ctx)
        return [*own, *sorted({e.name for e in entry_points(group=GROUP)} - set(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name; one of another package is not imported yet."""
        own = super().get_command(ctx, cmd_name)
        return own or next(map(Elsewhere, entry_points(group=GROUP, name=cmd_name)), None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is about to run, or whose help is about to be shown: imported here."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Elsewhere) else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run; what this package raises on purpose is one line and exit status 1."""
        try:
            return super().invoke(ctx)
        except TokenPriorityError as error:
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise typer.Exit(1) from None
