"""`tokenpriority score`: every form in, all numbers out, and a run that is killed ends in the same file."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from tokenpriority import Client, Scores
from tokenpriority.cli.app import app
from tokenpriority.cli.parts import PART_ROWS

FORMS: list[dict[str, Any]] = [
    {"id": "ids", "token_ids": [1, 2, 3], "mask": [1, 0, 1]},
    {"text": "plain text", "spans": [{"start": 0, "end": 5, "priority": -1.0}]},
    {"id": 7, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {"prompt": "2+2=", "completion": "4"},
    {"id": "too large", "token_ids": [1, 99999]},
]


def score(source: Path, out: Path, url: str, *arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["score", str(source), "--out", str(out), "--url", url, *arguments]
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        parquet.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_form_is_scored_as_by_the_client(service: str, tmp_path: Path, suffix: str) -> None:
    forms = FORMS if suffix == ".jsonl" else [{**form, "id": str(form.get("id", n))} for n, form in enumerate(FORMS)]
    source = write(tmp_path / f"in{suffix}", forms)
    done = score(source, tmp_path / "out.parquet", service, "--method", "prift_prob", "--signals", "rank")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("out.parquet: 5 rows, 1 failed (see the column `error`)\n")
    assert "5/5 sequences" in " ".join(done.stderr.split())
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "token_ids", "logprobs", "priorities", "rank", "error"]
    assert [str(t) for t in table.schema.types[1:4]] == ["list<element: uint32>", *["list<element: float>"] * 2]
    with Client(service) as client:
        expected = list(client.score_many(FORMS, method="prift_prob", signals=["rank"], errors="return"))
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["ids", "1", "7", "3", "too large"]
    for row, scores in zip(rows[:4], expected, strict=False):
        assert isinstance(scores, Scores)
        for name in ("token_ids", "logprobs", "priorities"):
            np.testing.assert_array_equal(np.array(row[name], np.float32), getattr(scores, name))
        np.testing.assert_array_equal(np.array(row["rank"], np.float32), scores.signals["rank"])
        assert row["error"] is None
    assert "99999" in rows[4]["error"]
    assert rows[4]["priorities"] is None
    assert not (tmp_path / "out.parquet.parts").exists()


def test_rows_that_are_no_sequences_are_errors_of_their_own(service: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"token_ids": [1, 2], "label": "x"}\n\n{broken\n[1, 2]\n{"id": 1.5, "text": "a"}\n{"text": "b"}\n'
    )
    done = score(source, tmp_path / "out.parquet", service)
    assert done.exit_code == 0, done.output
    assert "columns not read: label\n" in done.stderr
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    for row, error in zip(
        rows, (None, "row 1: not JSON", "row 2: must be an object", "id: must be a str", None), strict=True
    ):
        assert (row["error"] is None) if error is None else error in row["error"]


def many_rows(path: Path) -> Path:
    rng = np.random.default_rng(3)
    rows: list[dict[str, Any]] = [{"token_ids": rng.integers(0, 999, n).tolist()} for n in rng.integers(1, 9, 3000)]
    rows[1500] = {"token_ids": []}
    return write(path, rows)


def command(source: Path, out: Path, url: str) -> list[str]:
    program = "from tokenpriority.cli import main; main()"
    return [sys.executable, "-c", program, "score", str(source), "--out", str(out), "--url", url]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_ends_in_the_same_file(server: Any, tmp_path: Path, how: signal.Signals) -> None:
    source, whole, resumed = many_rows(tmp_path / "in.jsonl"), tmp_path / "whole.parquet", tmp_path / "resumed.parquet"
    assert score(source, whole, server.url).exit_code == 0
    assert len(parquet.read_table(whole)) == 3000

    async def hang_after_row_2500(server: Any, request: Any) -> Any:
        if request.sequences[0].id > 2500:
            await asyncio.sleep(3600)
        return await server.score(request)

    server.always = hang_after_row_2500
    running = subprocess.Popen(command(source, resumed, server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = tmp_path / "resumed.parquet.parts"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.parquet"))) < 2500 // PART_ROWS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(how)
    _, printed = running.communicate(timeout=60)
    assert running.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert b"stopped: 2048 rows are kept; the same command goes on after them" in printed
    assert not resumed.exists()
    for name in ("part.tmp", "joined.tmp"):  # as a kill in the middle of a write leaves them
        (folder / name).write_bytes(b"half")

    server.always = None
    server.requests.clear()
    done = score(source, resumed, server.url)
    assert done.exit_code == 0, done.output
    assert "going on after row 2048" in done.stderr
    assert server.requests[0].sequences[0].id == 2048
    assert "3000 rows, 1 failed" in done.stdout
    assert resumed.read_bytes() == whole.read_bytes()
    assert not folder.exists()


def test_another_job_is_refused_and_a_finished_one_is_left_alone(server: Any, tmp_path: Path) -> None:
    source, out = many_rows(tmp_path / "in.jsonl"), tmp_path / "out.parquet"

    async def hang_after_row_1100(server: Any, request: Any) -> Any:
        if request.sequences[0].id > 1100:
            return 403, {"content-type": "application/json"}, b'{"error": {"type": "forbidden", "message": "enough"}}'
        return await server.score(request)

    server.always = hang_after_row_1100
    stopped = score(source, out, server.url)
    assert (stopped.exit_code, stopped.stderr.splitlines()[-1]) == (1, "Forbidden: enough")
    server.always = None

    other_method = score(source, out, server.url, "--method", "spans", "--params", '{"outside": 1}')
    assert other_method.exit_code == 1
    assert "OtherJob: " in other_method.stderr
    assert "method: {'name': 'uniform', " in other_method.stderr
    server.fingerprint = "f1"
    other_model = score(source, out, server.url)
    assert other_model.exit_code == 1
    assert "fingerprints: {'reference': 'f0'} there, {'reference': 'f1'} now" in other_model.stderr
    server.fingerprint = "f0"

    assert score(source, out, server.url).exit_code == 0
    bytes_before, asked = out.read_bytes(), len(server.requests)
    again = score(source, out, server.url)
    assert (again.exit_code, again.stdout) == (0, f"{out} is complete already\n")
    assert len(server.requests) == asked
    source.write_text('{"token_ids": [1, 2]}\n')
    changed = score(source, out, server.url)
    assert changed.exit_code == 1
    assert "OtherJob: " in changed.stderr
    assert "source: " in changed.stderr
    assert out.read_bytes() == bytes_before


def test_parts_that_a_kill_left_beside_the_whole_file_are_removed(service: str, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [{"token_ids": [1, 2]}]), tmp_path / "out.parquet"
    assert score(source, out, service).exit_code == 0
    folder, whole = tmp_path / "out.parquet.parts", out.read_bytes()
    job = parquet.read_schema(out).metadata[b"tokenpriority"]
    for job_left in (job, None):  # the kill came before the removal, or in the middle of it
        folder.mkdir()
        (folder / "00000000.parquet").write_bytes(whole)
        if job_left:
            (folder / "job.json").write_bytes(job_left)
        again = score(source, out, service)
        assert (again.exit_code, again.stdout) == (0, f"{out} is complete already\n")
        assert not folder.exists()
        assert out.read_bytes() == whole

    folder.mkdir()
    (folder / "job.json").write_bytes(job.replace(b"uniform", b"dft"))
    assert "OtherJob: " in score(source, out, service).stderr
    assert folder.exists(), "what belongs to another job is not ours to remove"


def test_a_first_run_that_never_scored_binds_nothing(service: str, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [{"token_ids": [1, 2]}]), tmp_path / "out.parquet"
    assert score(source, out, service, "--method", "no_such").exit_code == 1
    assert score(source, out, service, "--model", "nobody").stderr.endswith(
        "NotFound: model: no model 'nobody'; the server has reference, base\n"
    )
    assert score(source, out, service).exit_code == 0


def test_an_empty_file_gives_an_empty_one(server: Any, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("")
    assert score(source, tmp_path / "out.parquet", server.url).exit_code == 0
    assert len(parquet.read_table(tmp_path / "out.parquet")) == 0


def test_the_models_fingerprints_are_those_the_method_reads(service: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"token_ids": [1, 2, 3]}])
    assert score(source, tmp_path / "out.parquet", service, "--method", "token_cleaning").exit_code == 0
    job = json.loads(parquet.read_schema(tmp_path / "out.parquet").metadata[b"tokenpriority"])
    assert set(job["fingerprints"]) == {"reference", "base"}
    assert job["method"] == {"name": "token_cleaning", "version": 1, "params": {}}
