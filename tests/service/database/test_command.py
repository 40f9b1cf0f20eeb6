"""`tokenpriority db`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenpriority_service.database.command import app


def run(*arguments: str) -> tuple[int, str]:
    """Exit status, and everything said."""
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def config(url: str, tmp_path: Path) -> str:
    file = tmp_path / "server.toml"
    file.write_text(f'[database]\nurl = "{url}"\n')
    return str(file)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENPRIORITY_DATABASE__URL", raising=False)


def test_from_nothing_to_current(config: str, url: str) -> None:
    status, said = run("check", "--config", config)
    assert status == 1
    assert said == (
        f"tokenpriority db: the tables of {url} are at version none, this program needs 0001: "
        "run `tokenpriority db upgrade`\n"
    )
    for arguments in (["upgrade"], ["check"], ["upgrade"]):
        assert run(*arguments, "--config", config) == (0, f"{url} is up to date\n")


def test_the_url_may_come_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPRIORITY_DATABASE__URL", url)
    assert run("upgrade") == (0, f"{url} is up to date\n")
    assert run("check") == (0, f"{url} is up to date\n")


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    for content, message in {
        '[database]\nurl = "mysql://a:secret@b/c"': "database.url: must begin with sqlite:// or postgresql://",
        "[database]\naddress = 1": "database.address",
        "[database": "not valid TOML",
    }.items():
        file.write_text(content)
        status, said = run("upgrade", "--config", str(file))
        assert status == 2
        assert message in said
        assert said.count("\n") == 1
        assert "secret" not in said
