"""`tokenpriority teams`.

Knows the options and what is printed. What the configuration file declares is changed there, not here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from pydantic import ValidationError

from tokenpriority_service.configuration.settings import TeamSettings
from tokenpriority_service.configuration.settings_errors import explain
from tokenpriority_service.teams.caller import Limits
from tokenpriority_service.teams.commands import AsJson, Config, check_name, failing, opened, print_json, print_rows
from tokenpriority_service.teams.keys import all_keys
from tokenpriority_service.teams.limits import all_limits, get_limits, set_limits

app = typer.Typer(help="Set and list the limits of teams.", no_args_is_help=True)

NONE = "none"


@app.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="The team.", metavar="NAME")],
    weight: Annotated[
        float | None, typer.Option(help="Its share of the engines relative to other teams.", show_default=False)
    ] = None,
    tokens_per_minute: Annotated[
        str | None, typer.Option(metavar="N|none", help="Most tokens computed in a minute.", show_default=False)
    ] = None,
    concurrent_tokens: Annotated[
        str | None, typer.Option(metavar="N|none", help="Most tokens queued or in an engine.", show_default=False)
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Set limits of a team; what is not given stays. They hold from the next request on."""
    fail = failing("teams set")
    check_name("NAME", name, fail)
    given = {"weight": weight, "tokens_per_minute": tokens_per_minute, "concurrent_tokens": concurrent_tokens}
    changes = {key: None if value == NONE else value for key, value in given.items() if value is not None}
    if not changes:
        fail("give --weight, --tokens-per-minute or --concurrent-tokens")
    try:
        changes = TeamSettings(**changes).model_dump(include=set(changes))
    except ValidationError as error:
        option, _, what = explain(error).partition(":")
        fail(f"--{option.replace('_', '-')}:{what}")

    def change(connection: sa.Connection) -> Limits:
        limits = Limits(**{**asdict(get_limits(connection, name)), **changes})
        set_limits(connection, name, limits)
        return limits

    with opened(config, fail) as (settings, database):
        if name in settings.teams:
            fail(f"team {name} is declared in {config or 'the environment'}: change [teams.{name}] there")
        limits = database.write_now(change)
    row = {"team": name, **asdict(limits)}
    if as_json:
        print_json(row)
    else:
        print_rows(tuple(row), [_cells(row)])


@app.command("list")
def list_(config: Config = None, as_json: AsJson = False) -> None:
    """List the teams that have a key or limits, and where the limits are set."""
    with opened(config, failing("teams list")) as (settings, database):
        rows = database.read_now(lambda connection: _rows(connection, settings.teams, config))
    if as_json:
        print_json({"teams": rows})
    else:
        heads = ("team", "weight", "tokens_per_minute", "concurrent_tokens", "keys", "set_in")
        print_rows(heads, [_cells(row) for row in rows])


def _rows(connection: sa.Connection, declared: dict[str, TeamSettings], config: Path | None) -> list[dict[str, Any]]:
    """One row for each team; `keys` counts the valid ones, that of the file too."""
    stored = all_limits(connection)
    keys = Counter(key.team for key in all_keys(connection) if not key.ended)
    keys.update(name for name, team in declared.items() if team.key_sha256)
    rows = []
    for name in sorted({*declared, *stored, *keys}):
        limits, where = stored.get(name, Limits()), "database" if name in stored else "default"
        if name in declared:
            limits, where = Limits.declared(declared[name]), str(config or "environment")
        rows.append({"team": name, **asdict(limits), "keys": keys[name], "set_in": where})
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    return [_cell(value) for value in row.values()]


def _cell(value: Any) -> str:
    if value is None:
        return NONE
    return f"{value:g}" if isinstance(value, float) else str(value)
