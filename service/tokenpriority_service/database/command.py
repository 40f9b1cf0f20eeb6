"""`tokenpriority db`: the tables of the server's database.

Knows the options and how a mistake is told: in one line on standard error, with exit status 2 for a configuration that
cannot be used and 1 for tables that are not those of this version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tokenpriority_service.configuration.settings import InvalidSettings, read
from tokenpriority_service.database import upgrade as tables
from tokenpriority_service.database.database import Database, InvalidUrl

app = typer.Typer(help="Make and check the tables of the server's database.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option(help="TOML file of the server; see service/README.md.")]


@app.command()
def upgrade(config: Config = None) -> None:
    """Make the tables, or bring them up to this version.

    `serve` does this by itself with SQLite; with PostgreSQL run it once for each new version, before the servers.
    """
    database = _open(config)
    try:
        tables.upgrade(database)
    except tables.NotCurrent as error:
        _fail(str(error), status=1)
    finally:
        database.close()
    typer.echo(f"{database.shown} is up to date")


@app.command()
def check(config: Config = None) -> None:
    """Say whether the tables are those of this version; exit status 1 if they are not."""
    database = _open(config)
    try:
        tables.check(database)
    except tables.NotCurrent as error:
        _fail(str(error), status=1)
    finally:
        database.close()
    typer.echo(f"{database.shown} is up to date")


def _open(config: Path | None) -> Database:
    try:
        return Database(read(config).database.url)
    except InvalidSettings as error:
        _fail(str(error))
    except InvalidUrl as error:
        _fail(f"database.url: {error}")


def _fail(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"tokenpriority db: {message}", err=True)
    raise typer.Exit(status)
