"""The registry as people and programs read it: complete, in every form, and second-hand where it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tokenpriority import Client
from tokenpriority.cli.app import app
from tokenpriority.methods import METHODS, Method, describe
from tokenpriority.methods.table import BEGIN, DIVIDED_BY, END, groups, markdown, rewritten
from tokenpriority.schema import MethodInfo

EACH = pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)


def run(*arguments: str) -> Any:
    done = CliRunner(env={"COLUMNS": "600"}).invoke(app, ["methods", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def blocks() -> dict[str, str]:
    """What `tokenpriority methods` prints of each method: the lines between two rules, as one text."""
    found = {}
    for block in run().replace("┡", "├").replace("└", "├").split("├"):
        lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in block.splitlines() if "│" in line]
        if lines:
            found[lines[0][0]] = "\n".join(cell for column in zip(*lines, strict=True) for cell in column)
    return found


TABLES = blocks()
MARKDOWN = {line.split("`")[1]: line for line in markdown().splitlines() if line.startswith("| `")}


def test_every_method_is_there_once_and_in_order() -> None:
    names = [row.name for _, rows in groups() for row in rows]
    assert names == list(METHODS) == list(MARKDOWN) == list(TABLES)
    assert run("--markdown") == markdown()


@EACH
def test_each_form_tells_what_the_method_is(method: Method) -> None:
    for text in (TABLES[method.name], MARKDOWN[method.name].replace("\\|", "|")):
        for part in (method.sign, method.scope, method.equation, DIVIDED_BY[method.denominator], method.verified):
            assert part in text
        assert method.citation.split(", arXiv")[0] in text
        for role in method.roles:
            assert role in text
        for signal in method.signals if set(method.roles) - set(method.distributions) else ():
            assert signal in text
        for name, field in method.params.model_fields.items():
            assert (f"{name} (required)" if field.is_required() else f"{name}={field.default}") in text
    assert method.family in TABLES[method.name]


@EACH
def test_a_second_hand_method_says_so_everywhere(method: Method) -> None:
    second_hand = method.verified == "second-hand"
    listed = {info.name: info for info in describe().methods}[method.name]
    for text in (TABLES[method.name], MARKDOWN[method.name], listed.verified):
        assert ("second-hand" in text) == second_hand


@EACH
def test_where_it_runs_is_where_its_parameters_let_it(method: Method) -> None:
    """Told by what each choice of `source` reads; tests/service/test_methods.py asks a server."""
    [runs_on] = [row.runs_on for _, rows in groups() for row in rows if row.name == method.name]
    source = "source" in method.params.model_fields
    frozen = set(method.roles) <= {"reference", "base"} and not method.distributions
    assert runs_on.startswith("server") == frozen
    given = "collision" not in method.signals
    assert ("server" in runs_on) == (frozen or (source and given and not method.distributions))
    live = "base" in method.roles and "student" in method.roles
    assert ("local copy" in runs_on) == (live or bool({"reference", "base"} & set(method.distributions)))


def test_json_is_what_a_server_answers_and_holds_every_field(service: str) -> None:
    listed = json.loads(run("--json"))["methods"]
    with Client(service, retries=0) as client:
        assert [info.name for info in client.methods()] == list(METHODS)
        assert client.methods() == describe().methods
    for info in listed:
        method = METHODS[info["name"]]
        assert set(info) == set(MethodInfo.__struct_fields__)
        assert info["params"] == method.params.model_json_schema()
        assert info["schedule"] == (method.schedule and method.schedule.model_dump())
        assert (info["labels"], info["calibrated"]) == (method.labels, method.statistic is not None)
        assert (info["family"], info["verified"], info["source"]) == (
            method.family,
            method.verified,
            "+".join(method.roles) or "none",
        )
        assert info["summary"]


def test_one_form_at_a_time() -> None:
    done = CliRunner().invoke(app, ["methods", "--json", "--markdown"])
    assert done.exit_code == 2
    assert "without --json" in done.stderr


def test_the_table_is_written_between_its_marks_and_nowhere_else() -> None:
    text = f"before\n{BEGIN}\nold | table\n{END}\nafter\n"
    once = rewritten(text)
    assert once == f"before\n{BEGIN}\n\n{markdown()}\n{END}\nafter\n"
    assert rewritten(once) == once
    for broken in ("", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", text + text):
        with pytest.raises(ValueError, match="expected one line"):
            rewritten(broken)
