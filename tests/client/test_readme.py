"""The client's README does what it says: its Python runs, its commands run, its tree is the tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tokenpriority
from tokenpriority.cli.app import app

PACKAGE = Path(tokenpriority.__file__).parent
README = (PACKAGE.parent / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_python_blocks_run(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    program = "\n".join(blocks("python")).replace("http://127.0.0.1:8000", service)
    exec(compile(program, "client/README.md", "exec", dont_inherit=True), names)
    names["client"].close()


def test_the_commands_run(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text('{"text": "hello"}\n')
    [commands] = blocks("bash")
    for line in commands.splitlines():
        name, *arguments = shlex.split(line, comments=True)
        assert name == "tokenpriority"
        done = CliRunner(env={"TOKENPRIORITY_URL": service}).invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert Path("scores.parquet").exists()


def test_the_tree_names_every_file() -> None:
    tree = README.split("```")[1]
    for file in PACKAGE.glob("*.py"):
        assert re.search(rf"^  {re.escape(file.name)} ", tree, re.MULTILINE), file.name
    for name in re.findall(r"^  (\w+(?:\.py|/)) ", tree, re.MULTILINE):
        assert (PACKAGE / name).exists(), name
