"""The command line: what it prints, how it ends, and what other packages add to it."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tokenpriority import Client, Scores
from tokenpriority.cli import group
from tokenpriority.cli.app import app
from tokenpriority.cli.inspect import GREEN, RED, coloured, legend, style, token_table
from tokenpriority.methods import METHODS

DEEP_GREEN = "48;2;" + ";".join(map(str, GREEN))


def run(*arguments: str, **options: Any) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments), **options)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_help_lists_every_command() -> None:
    help_text = run("--help").stdout
    for name in ("methods", "score", "coverage", "usage", "limits", "inspect", "serve", "train", "demo"):
        assert re.search(rf"^\W*{name} +\w", help_text, re.MULTILINE)
    for line in group.HELP.values():
        assert line in help_text


def test_methods_as_a_table_and_as_json() -> None:
    table = run("methods").stdout
    listed = json.loads(run("methods", "--json").stdout)["methods"]
    assert {method["name"] for method in listed} == set(METHODS)
    for name, method in METHODS.items():
        assert name in table
        assert method.citation.split(",")[0].split()[0] in table
    assert "tau=0.5" in table
    [mass] = [method for method in listed if method["name"] == "prift_mass"]
    assert mass["params"]["properties"]["tau"]["default"] == 0.5


def test_inspect_colours_tokens(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    done = run("inspect", "abc [red] é\n", "--url", service, "--method", "uniform")
    assert done.exit_code == 0, done.output
    assert plain(done.stdout).startswith("abc [red] é\n")
    assert "\x1b[2ma" in done.stdout, "the first token has priority 0 and is dim"
    assert re.search(rf"\x1b\[[\d;]*{DEEP_GREEN}m", done.stdout)
    assert "12 tokens above zero, 0 below, 1 at zero; uniform under reference " in plain(done.stdout)


def test_inspect_of_a_completion_leaves_the_prompt_dim(service: str) -> None:
    done = run("inspect", "ab", "--completion", "cd", "--url", service, "--method", "uniform")
    assert "abcd" in done.stdout
    assert "2 tokens above zero, 0 below, 2 at zero" in done.stdout


def test_inspect_reads_standard_input_and_prints_a_table(service: str) -> None:
    done = run("inspect", "-", "--table", "--url", service, input="hi!")
    with Client(service) as client:
        [scores] = client.score(["hi!"], method="prift_prob", signals=["rank"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["'h'", "'i'", "'!'"]
    assert rows[0][3:] == ["-", "-", "0"]
    assert rows[1][2:] == [
        str(scores.token_ids[1]),
        f"{scores.logprobs[1]:.3f}",
        f"{scores.signals['rank'][1]:.0f}",
        f"{scores.priorities[1]:+.3f}" if scores.priorities[1] else "0",
    ]


def test_colours_follow_sign_and_size() -> None:
    assert style(0.0, 2.0) == "dim"
    assert style(2.0, 2.0).endswith("rgb({},{},{})".format(*GREEN))
    assert style(-2.0, 2.0).endswith("rgb({},{},{})".format(*RED))
    assert len({style(value, 2.0) for value in (-2.0, -1.0, -0.1, 0.0, 0.1, 1.0, 2.0)}) == 7


def test_characters_are_shown_once_whatever_the_offsets() -> None:
    """An emoji of two tokens, a gap no token covers, and a token of no characters."""
    scores = Scores(
        id=0,
        token_ids=np.arange(5, dtype=np.uint32),
        logprobs=np.array([np.nan, -1, -1, -1, -1], np.float32),
        priorities=np.array([0, 1, -1, 0.5, 0], np.float32),
        signals={"rank": np.array([np.nan, 1, 2, 3, 4], np.float32)},
        offsets=np.array([[0, 1], [1, 2], [1, 2], [4, 6], [6, 6]], np.uint32),
        text="a🎉  bcd",
    )
    shown = coloured(scores)
    assert shown.plain == "a🎉  bcd"
    assert [shown.plain[s.start : s.end] for s in shown.spans] == ["a", "🎉", "  ", "bc", "d"]
    assert [str(s.style) for s in shown.spans] == ["dim", style(1, 1), "dim", style(0.5, 1), "dim"]
    assert "2 tokens above zero, 1 below, 2 at zero; here" in legend(scores, "here").plain
    assert token_table(scores).row_count == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "localhost"], "must start with http:// or https://, got localhost"),
        (["--params", "{tau"], "--params: not JSON"),
        (["--params", "[1]"], "--params: must be a JSON object, got [1]"),
    ],
)
def test_options_are_checked(arguments: list[str], message: str) -> None:
    done = run("inspect", "text", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_errors_end_in_one_line(service: str, server: Any) -> None:
    done = run("inspect", "text", "--method", "prift_mass", "--params", '{"tau": 9}', "--url", service)
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.fullmatch(r"InvalidParameter: method.params.tau: .* got 9 \(request \w+\)\n", done.stderr)
    server.always = None
    done = run("inspect", "text", "--url", server.url)
    assert done.exit_code == 1
    assert done.stderr.startswith("SequenceErrors: 1 of 1 sequences failed")


def test_a_command_of_another_package_is_imported_when_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere_package.py").write_text(
        "import typer\n"
        "def greet(name: str, loud: bool = False) -> None:\n"
        '    """Greet somebody."""\n'
        "    typer.echo(name.upper() if loud else name)\n"
    )
    (tmp_path / "lacking_package.py").write_text("import a_library_nobody_has\n")
    (tmp_path / "broken_package.py").write_text("import tokenpriority.no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    added = [
        EntryPoint("greet", "elsewhere_package:greet", group.GROUP),
        EntryPoint("serve", "lacking_package:serve", group.GROUP),
        EntryPoint("broken", "broken_package:broken", group.GROUP),
    ]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in added if name in (None, point.name)]

    monkeypatch.setattr(group, "entry_points", entry_points)
    assert "From elsewhere_package." in run("--help").stdout
    assert "elsewhere_package" not in sys.modules
    assert "Greet somebody." in run("greet", "--help").stdout
    assert run("greet", "ann", "--loud").stdout == "ANN\n"
    lacking = run("serve")
    assert lacking.exit_code == 1
    assert lacking.stderr == 'serve needs a_library_nobody_has: pip install "tokenpriority[service]"\n'
    assert isinstance(run("broken").exception, ModuleNotFoundError), "a bug of ours is not taken for a missing library"
    assert run("nonsense").exit_code == 2


def test_a_group_of_commands_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grouped_package.py").write_text(
        "import typer\n"
        "from tokenpriority.errors import Unavailable\n"
        "many = typer.Typer(help='Many things.', no_args_is_help=True)\n"
        "single = typer.Typer()\n"
        "@many.command()\n"
        "@single.command()\n"
        "def one(name: str) -> None:\n"
        "    typer.echo(name)\n"
        "@many.command('two')\n"
        "def two() -> None:\n"
        "    raise Unavailable('not now')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    added = [EntryPoint(name, f"grouped_package:{name}", group.GROUP) for name in ("many", "single")]
    monkeypatch.setattr(
        group, "entry_points", lambda *, group, name=None: [each for each in added if name in (None, each.name)]
    )
    assert "From grouped_package." in run("--help").stdout
    assert "grouped_package" not in sys.modules
    for arguments in (["many"], ["many", "--help"], ["many", "-h"]):
        shown = run(*arguments).output
        assert "Many things." in shown
        assert re.search(r"^\W*one +|^\W*two +", shown, re.MULTILINE)
        assert "completion" not in shown
    assert run("many", "one", "ann").stdout == "ann\n"
    assert run("single", "one", "ann").stdout == "ann\n", "its commands have names even where it has one"
    assert "Usage: tokenpriority many one" in run("many", "one", "--help").stdout.replace("root", "tokenpriority")
    failed = run("many", "two")
    assert (failed.exit_code, failed.stderr) == (1, "Unavailable: not now\n")
    assert run("many", "three").exit_code == 2
