"""`tokenpriority score --cached-only` and `tokenpriority coverage`: files of which nothing is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyarrow import parquet
from typer.testing import CliRunner, Result

from tokenpriority.cli.app import app


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def score(source: Path, out: Path, url: str, *options: str) -> Result:
    return run("score", source, "--out", out, "--url", url, *options)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_bulk_unless_told_otherwise(server: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"token_ids": [1, 2]}])
    for number, (options, expected) in enumerate((((), "bulk"), (("--service-class", "interactive"), "interactive"))):
        assert score(source, tmp_path / f"{number}.parquet", server.url, *options).exit_code == 0
        assert server.requests[-1].service_class == expected
        assert not server.requests[-1].cached_only
    assert score(source, tmp_path / "out.parquet", server.url, "--service-class", "slow").exit_code == 2


def test_what_is_not_stored_is_that_rows_error(server: Any, tmp_path: Path) -> None:
    def edit(answer: dict[str, Any]) -> None:
        answer["results"][1] = {"id": 1, "error": {"type": "not_stored", "message": "0 of 3 tokens are stored"}}

    source, out = (
        write(tmp_path / "in.jsonl", [{"token_ids": [1, 2]}, {"token_ids": [3, 4, 5]}]),
        tmp_path / "o.parquet",
    )
    server.faults.append(server.edited(edit))
    done = score(source, out, server.url, "--cached-only")
    assert done.exit_code == 0, done.output
    assert [row["error"] for row in parquet.read_table(out).to_pylist()] == [None, "0 of 3 tokens are stored"]
    assert [request.cached_only for request in server.requests] == [True]

    computing = score(source, out, server.url)
    assert computing.exit_code == 1
    assert "cached_only: True there, False now" in computing.stderr, "its failures are no other run's"


def test_how_much_of_a_file_is_stored(server: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"token_ids": [n, n, n]} for n in range(2000)]
    source = write(tmp_path / "in.jsonl", [*rows, {"token_ids": [], "id": 2000}, {"token_ids": [1.5], "label": "x"}])
    done = run("coverage", source, "--url", server.url, "--method", "prift_prob", "--signals", "rank")
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first == f"{source}: 1,000 of 2,002 sequences are stored whole, 66.6 % of 6,000 tokens"
    assert second == "2 cannot be scored; the first, 2000: token_ids: needs one"
    assert "2002/2002 sequences, 6,000 tokens" in " ".join(done.stderr.split())
    assert "columns not read: label\n" in done.stderr
    for request in server.requests:
        assert (request.method.name, request.signals, request.service_class) == ("prift_prob", ["rank"], "bulk")

    printed = run("coverage", source, "--url", server.url, "--json")
    sums = {"sequences": 2002, "stored_sequences": 1000, "failed_sequences": 2, "tokens": 6000, "stored_tokens": 4000}
    assert json.loads(printed.stdout) == {**sums, "complete": False}
    whole = write(tmp_path / "whole.jsonl", rows[:1])
    assert json.loads(run("coverage", whole, "--url", server.url, "--json").stdout)["complete"] is True
