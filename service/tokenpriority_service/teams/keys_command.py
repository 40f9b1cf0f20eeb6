"""`tokenpriority keys`.

Knows the options and what is printed. A new key is the last line of standard output, alone, so that a script can take
it; it is shown this once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from tokenpriority_service.teams import keys
from tokenpriority_service.teams.commands import (
    AsJson,
    Config,
    check_name,
    failing,
    opened,
    print_json,
    print_rows,
    stamp,
)
from tokenpriority_service.teams.keys import Key, KeyRefused

app = typer.Typer(help="Make, list, rotate and revoke the keys of teams.", no_args_is_help=True)


class Allowed(StrEnum):
    """Scopes as an option."""

    score = "score"
    admin = "admin"


Team = Annotated[str, typer.Option(help="The team.", show_default=False)]
KeyId = Annotated[
    str | None, typer.Option("--key", metavar="ID", help="Which key, if the team has several.", show_default=False)
]


@app.command()
def create(
    team: Team,
    scope: Annotated[Allowed, typer.Option(help="What it allows; admin includes score.")] = Allowed.score,
    label: Annotated[str, typer.Option(help="A note on who has it.", show_default=False)] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It holds at once; the server keeps a hash of it alone."""
    fail = failing("keys create")
    check_name("--team", team, fail)
    if not label.isprintable() or len(label) > 200:
        fail("--label: must be at most 200 printable characters")
    with opened(config, fail) as (_, database):
        made, key = database.write_now(lambda connection: keys.create(connection, team, [scope.value], label))
    if as_json:
        print_json({**_row(made), "key": key})
    else:
        _show(key, f"key {made.id} of team {team}, scope {scope.value}; it cannot be shown again")


@app.command("list")
def list_(
    team: Annotated[str | None, typer.Option(help="One team alone.", show_default=False)] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List all keys, ended ones too: what is known of them, never the keys."""
    with opened(config, failing("keys list")) as (settings, database):
        rows = [_row(key) for key in database.read_now(lambda connection: keys.all_keys(connection, team))]
    if as_json:
        print_json({"keys": rows})
    else:
        heads = ("id", "team", "scopes", "label", "created", "ends")
        print_rows(heads, [_cells(row) for row in rows])
    in_file = [name for name, each in settings.teams.items() if each.key_sha256 and team in (None, name)]
    if in_file:
        typer.echo(f"also a key_sha256 in the configuration: {', '.join(in_file)}", err=True)


@app.command()
def rotate(
    team: Team,
    key: KeyId = None,
    grace: Annotated[float, typer.Option(min=0, metavar="HOURS", help="How long the old key holds on.")] = 0.0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key in place of another, with its scopes and label, and print it."""
    fail = failing("keys rotate")
    with opened(config, fail) as (_, database):
        try:
            old, made, secret = database.write_now(
                lambda connection: keys.rotate(connection, team, key, grace_seconds=3600 * grace)
            )
        except KeyRefused as error:
            fail(str(error), 1)
    if as_json:
        print_json({**_row(made), "key": secret, "old": _row(old)})
    else:
        _show(secret, f"key {made.id} of team {team} in place of {old.id}, which ends {stamp(old.ends_at)}")


@app.command()
def revoke(team: Team, key: KeyId = None, config: Config = None, as_json: AsJson = False) -> None:
    """End a key now. A server whose last key ends lets nobody in."""
    fail = failing("keys revoke")
    with opened(config, fail) as (_, database):
        try:
            old = database.write_now(lambda connection: keys.revoke(connection, team, key))
        except KeyRefused as error:
            fail(str(error), 1)
    if as_json:
        print_json(_row(old))
    else:
        typer.echo(f"key {old.id} of team {team} ended")


def _row(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "team": key.team,
        "scopes": sorted(key.scopes),
        "label": key.label,
        "created": stamp(key.created_at),
        "ends": stamp(key.ends_at),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [" ".join(value) if isinstance(value, list) else value or "-" for value in row.values()]


def _show(key: str, hint: str) -> None:
    typer.echo(hint, err=True)
    typer.echo(key)
