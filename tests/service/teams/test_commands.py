"""`tokenpriority keys` and `tokenpriority teams`, as typed: what is printed where, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from postgres import Postgres
from tokenpriority.cli.app import app
from tokenpriority.errors import Unauthorized
from tokenpriority_service.database.database import Database
from tokenpriority_service.teams.caller import Limits
from tokenpriority_service.teams.directory import Directory

Run = Callable[..., Any]


def invoke(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "60", "TOKENPRIORITY_DATABASE__URL": None}).invoke(app, list(arguments))


@pytest.fixture
def config(url: str, tmp_path: Path) -> str:
    """A server's configuration file, that declares a team of its own."""
    file = tmp_path / "server.toml"
    digest = hashlib.sha256(b"filed").hexdigest()
    file.write_text(f'[database]\nurl = "{url}"\n[teams.filed]\nkey_sha256 = "{digest}"\nweight = 2.5\n')
    return str(file)


@pytest.fixture
def run(config: str) -> Run:
    """Runs a command with the configuration; what it prints on standard output."""

    def run(*arguments: str) -> str:
        done = invoke(*arguments, "--config", config)
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    return run


@pytest.fixture
def refused(config: str) -> Run:
    """Runs a command that must fail; its one line on standard error."""

    def refused(status: int, *arguments: str) -> str:
        done = invoke(*arguments, "--config", config)
        assert (done.exit_code, done.stdout) == (status, ""), done.output
        [line] = done.stderr.splitlines()
        return str(line)

    return refused


def team(database: Database, key: str) -> str | None:
    try:
        return asyncio.run(Directory(database, {}).caller(f"Bearer {key}")).team
    except Unauthorized:
        return None


def test_a_key_is_the_last_line_of_standard_output_and_nowhere_else(config: str, run: Run, database: Database) -> None:
    done = invoke("keys", "create", "--team", "alpha", "--label", "ann's laptop", "--config", config)
    key = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"tp_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", key)
    assert done.stdout == f"{key}\n"
    public, secret = key.split("_", 2)[1:]
    assert secret not in done.stderr
    assert public in done.stderr
    assert "cannot be shown again" in done.stderr
    assert team(database, key) == "alpha"
    listed = run("keys", "list")
    assert secret not in listed + run("keys", "list", "--json")
    head, row = listed.splitlines()
    assert head.split() == ["id", "team", "scopes", "label", "created", "ends"]
    assert re.fullmatch(rf"{public}  alpha  score   ann's laptop  \S+\+00:00  -", row)


def test_as_json(run: Run, database: Database) -> None:
    made = json.loads(run("keys", "create", "--team", "ops", "--scope", "admin", "--json"))
    assert team(database, made["key"]) == "ops"
    assert list(made) == ["id", "team", "scopes", "label", "created", "ends", "key"]
    assert (made["scopes"], made["ends"]) == (["admin"], None)
    turned = json.loads(run("keys", "rotate", "--team", "ops", "--grace", "1.5", "--json"))
    ends = datetime.fromisoformat(turned["old"]["ends"])
    assert abs(ends - datetime.now(UTC) - timedelta(hours=1.5)) < timedelta(minutes=2)
    assert [team(database, each["key"]) for each in (made, turned)] == ["ops", "ops"]
    gone = json.loads(run("keys", "revoke", "--team", "ops", "--key", made["id"], "--json"))
    assert gone["id"] == made["id"]
    assert [team(database, each["key"]) for each in (made, turned)] == [None, "ops"]
    run("keys", "create", "--team", "alpha")
    listed = json.loads(run("keys", "list", "--json"))["keys"]
    assert [(key["team"], key["ends"] is None) for key in listed] == [("alpha", True), ("ops", False), ("ops", True)]
    assert len(json.loads(run("keys", "list", "--team", "ops", "--json"))["keys"]) == 2


def test_rotated_and_revoked_at_once(run: Run, refused: Run, database: Database) -> None:
    first = run("keys", "create", "--team", "alpha").splitlines()[-1]
    second = run("keys", "rotate", "--team", "alpha").splitlines()[-1]
    assert [team(database, key) for key in (first, second)] == [None, "alpha"]
    third = run("keys", "create", "--team", "alpha").splitlines()[-1]
    ids = {key.split("_")[1] for key in (second, third)}
    line = refused(1, "keys", "revoke", "--team", "alpha")
    assert line.startswith("tokenpriority keys revoke: --key: is required, team 'alpha' has 2: ")
    assert set(line.split(": ")[-1].split(", ")) == ids
    for key in (second, third):
        run("keys", "revoke", "--team", "alpha", "--key", key.split("_")[1])
    assert [team(database, key) for key in (second, third)] == [None, None]
    for command in ("revoke", "rotate"):
        line = refused(1, "keys", command, "--team", "alpha")
        assert line == f"tokenpriority keys {command}: --team: team 'alpha' has no valid key"


def test_limits_are_set_one_by_one(run: Run, database: Database) -> None:
    key = run("keys", "create", "--team", "alpha").splitlines()[-1]

    def limits() -> Limits:
        return asyncio.run(Directory(database, {}).caller(f"Bearer {key}")).limits

    run("teams", "set", "alpha", "--weight", "0.5", "--tokens-per-minute", "1000")
    assert limits() == Limits(0.5, 1000, None)
    run("teams", "set", "alpha", "--concurrent-tokens", "64")
    assert limits() == Limits(0.5, 1000, 64)
    printed = run("teams", "set", "alpha", "--tokens-per-minute", "none", "--json")
    assert json.loads(printed) == {
        "team": "alpha",
        "weight": 0.5,
        "tokens_per_minute": None,
        "concurrent_tokens": 64,
    }
    assert limits() == Limits(0.5, None, 64)
    run("keys", "create", "--team", "beta")
    assert [line.split() for line in run("teams", "list").splitlines()[1:-1]] == [
        ["alpha", "0.5", "none", "64", "1", "database"],
        ["beta", "1", "none", "none", "1", "default"],
    ]


def test_a_team_of_the_file_is_changed_in_the_file(config: str, run: Run, refused: Run) -> None:
    line = refused(2, "teams", "set", "filed", "--weight", "3")
    assert line == f"tokenpriority teams set: team filed is declared in {config}: change [teams.filed] there"
    [row] = json.loads(run("teams", "list", "--json"))["teams"]
    assert (row["team"], row["weight"], row["keys"], row["set_in"]) == ("filed", 2.5, 1, config)
    assert "filed" in invoke("keys", "list", "--config", config).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("keys", "create", "--team", "-"), "keys create: --team: must be 1 to 64 of A-Z a-z 0-9 . _ - and"),
        (("keys", "create", "--team", "a b"), "got 'a b'"),
        (("keys", "create", "--team", "alpha", "--label", "a\nb"), "--label: must be at most 200 printable"),
        (("teams", "set", "", "--weight", "1"), "teams set: NAME: must be 1 to 64"),
        (("teams", "set", "alpha"), "give --weight, --tokens-per-minute or --concurrent-tokens"),
        (("teams", "set", "alpha", "--weight", "0"), "--weight: Input should be greater than 0, got 0"),
        (("teams", "set", "alpha", "--weight", "nan"), "--weight: Input should be a finite number"),
        (("teams", "set", "alpha", "--tokens-per-minute", "0"), "--tokens-per-minute: Input should be greater than"),
        (("teams", "set", "alpha", "--concurrent-tokens", "many"), "--concurrent-tokens: Input should be a valid int"),
    ],
)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_cannot_be_is_said_in_one_line(arguments: tuple[str, ...], message: str, refused: Run) -> None:
    assert message in refused(2, *arguments)


def test_which_database(tmp_path: Path) -> None:
    def with_url(url: str, *arguments: str) -> Any:
        runner = CliRunner(env={"TOKENPRIORITY_DATABASE__URL": url})
        return runner.invoke(app, list(arguments))

    done = with_url("sqlite://", "keys", "list")
    assert done.exit_code == 2
    assert "tokenpriority keys list: database.url: sqlite:// is in the memory of one process" in done.stderr
    assert with_url("mysql://x", "keys", "list").stderr.startswith("tokenpriority keys list: database.url: must begin")
    # A new file of SQLite gets its tables; without any setting it is the default one, that of `serve`.
    assert with_url(f"sqlite:///{tmp_path / 'deep' / 'new.db'}", "keys", "create", "--team", "alpha").exit_code == 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOKENPRIORITY_")}
    main = "import sys; from tokenpriority.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "keys", "create", "--team", "alpha"]
    subprocess.run(command, env={**environment, "HOME": str(tmp_path)}, check=True, capture_output=True)
    assert (tmp_path / ".local" / "state" / "tokenpriority" / "tokenpriority.db").is_file()
    missing = invoke("teams", "list", "--config", str(tmp_path / "none.toml"))
    assert (missing.exit_code, "no such file" in missing.stderr) == (2, True)


def test_postgresql_is_not_upgraded_by_the_way(postgres: Postgres) -> None:
    url = postgres.create_database()
    done = CliRunner(env={"TOKENPRIORITY_DATABASE__URL": url}).invoke(app, ["keys", "create", "--team", "alpha"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "run `tokenpriority db upgrade`" in done.stderr


def test_a_database_that_is_away_is_one_line(free_port: int) -> None:
    url = f"postgresql://nobody:secret@127.0.0.1:{free_port}/none"
    done = CliRunner(env={"TOKENPRIORITY_DATABASE__URL": url}).invoke(app, ["keys", "list"])
    assert done.exit_code == 1
    told = f"tokenpriority keys list: database.url: {url.replace('secret', '***')} cannot be used: connection failed"
    assert done.stderr.splitlines()[-1].startswith(told)
    assert "secret" not in done.stderr


def test_help_of_the_groups() -> None:
    for group, commands in (("keys", ("create", "list", "rotate", "revoke")), ("teams", ("set", "list"))):
        text = invoke(group, "-h").stdout
        for command in commands:
            assert re.search(rf"^\W*{command} +\w", text, re.MULTILINE)
        assert "--install-completion" not in text
    assert "--grace" in invoke("keys", "rotate", "--help").stdout
    assert invoke("keys", "nonsense").exit_code == 2
