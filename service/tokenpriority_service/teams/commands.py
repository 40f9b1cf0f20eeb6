"""What `tokenpriority keys` and `tokenpriority teams` share: their options, the database, how a mistake is told.

A mistake is one line on standard error: exit status 2 for options or a configuration that cannot be used, 1 for what
the database does not allow. Knows none of the commands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tokenpriority.errors import Unavailable
from tokenpriority_service.configuration.settings import InvalidSettings, Settings, read
from tokenpriority_service.database.database import Database, InvalidUrl, reason
from tokenpriority_service.database.upgrade import NotCurrent, check, upgrade

Config = Annotated[
    Path | None,
    typer.Option(
        help="The server's TOML file; without it $TOKENPRIORITY_DATABASE__URL, or the default database, is used.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON in place of text.")]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of teams."""


@contextmanager
def opened(config: Path | None, fail: Callable[..., NoReturn]) -> Iterator[tuple[Settings, Database]]:
    """The server's configuration and its database, whose tables are those of this version."""
    try:
        settings = read(config)
        database = Database(settings.database.url)
    except InvalidSettings as error:
        fail(str(error))
    except InvalidUrl as error:
        fail(f"database.url: {error}")
    if database.in_memory:
        fail("database.url: sqlite:// is in the memory of one process; a file or PostgreSQL is needed here")
    try:
        # PostgreSQL is upgraded when its operator says so; see `tokenpriority db upgrade`.
        (upgrade if database.dialect == "sqlite" else check)(database)
        yield settings, database
    except NotCurrent as error:
        fail(str(error), 1)
    except Unavailable as error:
        fail(f"database.url: {database.shown} cannot be used: {reason(error)}", 1)
    finally:
        database.close()


def failing(command: str) -> Callable[..., NoReturn]:
    """How a command ends on a mistake."""

    def fail(message: str, status: int = 2) -> NoReturn:
        typer.echo(f"tokenpriority {command}: {message}", err=True)
        raise typer.Exit(status)

    return fail


def check_name(option: str, name: str, fail: Callable[..., NoReturn]) -> None:
    """Fail on what cannot be the name of a team."""
    if not NAME.fullmatch(name):
        fail(f"{option}: must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit, got {name!r}")


def print_json(value: Any) -> None:
    """Print one line of JSON."""
    typer.echo(json.dumps(value))


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as what is in them: nothing is cut off, whatever the terminal."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def stamp(seconds: float | None) -> str | None:
    """A time as ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
