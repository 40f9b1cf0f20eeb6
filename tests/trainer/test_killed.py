"""Runs killed at any moment and started again with the same command, against a run that was never killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from run_config import assert_close, metrics, writer
from tokenpriority_trainer.checkpoint import MARKER, CheckpointKeeper, last_whole
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.run import run
from training_forks import TrainingForks

Write = Callable[..., Path]

# An epoch has three steps, so that most checkpoints, and the last step, are within one. Logging does not fall together
# with saving.
TRAINING: dict[str, Any] = {"max_steps": 20, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2, "seed": 5}
ONE = {**TRAINING, "save_total_limit": 1}
DFT = {"method": "dft"}
TIMED = {"wait_seconds", "wait_share", "tokens_per_second"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def write(folder: Path, save_student: Callable[..., Path], text: str) -> Write:
    return writer(folder, save_student(folder / "student", attention_dropout=0.1), text)


@pytest.fixture(scope="module")
def whole(write: Write, folder: Path) -> Path:
    """The folder of a run that was never killed, every checkpoint kept."""
    run(load_config(write("whole", priorities=DFT, training=TRAINING)))
    return folder / "whole"


@pytest.fixture
def part(whole: Path, folder: Path) -> Iterator[Path]:
    """What a kill at step 17 leaves of that run when it keeps two checkpoints."""
    made = folder / "part"
    for name in ("checkpoint-14", "checkpoint-16"):
        shutil.copytree(whole / name, made / name)
    lines = (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    stands = [line for line in lines if json.loads(line)["step"] <= 16]
    (made / "metrics.jsonl").write_text("".join(stands) + lines[len(stands)][:20], encoding="utf-8")
    (made / "summary.json").write_text(json.dumps({**summary(whole), "complete": False}), encoding="utf-8")
    yield made
    shutil.rmtree(made)


def summary(run_folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    return found


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "model.safetensors").read_bytes()


def written(path: Path, since: int) -> bool:
    """Whether a file has been written to after a time in nanoseconds."""
    return path.exists() and path.stat().st_mtime_ns > since


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights bit by bit, the lines of every step once, and totals that count every step once."""
    assert_close(found, expected, atol=0)
    mine, its = ([{k: v for k, v in line.items() if k not in TIMED} for line in metrics(f)] for f in (found, expected))
    assert mine == its
    here, there = summary(found), summary(expected)
    assert here["complete"] is True
    for name in ("steps", "tokens", "method", "params", "composition", "fingerprints"):
        assert here[name] == there[name], name
    assert here["train_loss"] == pytest.approx(there["train_loss"], rel=1e-6)
    assert here["wait_seconds"] == pytest.approx(sum(line["wait_seconds"] for line in metrics(found)), rel=1e-4)
    assert here["tokens_per_second"] == pytest.approx(here["tokens"] / here["seconds"])


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_one_never_killed(write: Write, whole: Path, folder: Path) -> None:
    """Each kill comes when a file has just been written; one checkpoint is kept, so that losing it would lose all."""
    config, out = write("cut", priorities=DFT, training=ONE), folder / "cut"
    moments = [
        "metrics.jsonl",
        "checkpoint-2/config.json",
        "checkpoint-4/model.safetensors",
        "checkpoint-6/optimizer.pt",
        "checkpoint-8/scheduler.pt",
        "checkpoint-10/trainer_state.json",
        f"checkpoint-12/{MARKER}",  # the older one is deleted just then
        "checkpoint-14/rng_state.pth",
        f"checkpoint-20/{MARKER}",
        "model.safetensors",
    ]
    starts, statuses = [0], []
    with TrainingForks(folder / "forks.log") as forks:
        for moment in moments:
            since = time.time_ns()
            forks.start(config)
            statuses.append(forks.kill_when(partial(written, out / moment, since)))
            assert statuses[-1] in (-signal.SIGKILL, 0), forks.log.read_text()
            found, _ = last_whole(out)
            starts.append(0 if found is None else found.step)
            assert starts[-1] >= starts[-2], "a kill lost a checkpoint"
            if found is not None:
                assert weights(found.path) == weights(whole / found.path.name)
        forks.start(config)
        assert forks.wait() == 0, forks.log.read_text()
    assert statuses.count(-signal.SIGKILL) > len(moments) / 2, "hardly a kill came in time, so this says little"
    assert_same_run(out, whole)
    resumed = summary(out)["resumed_at"]
    assert resumed == sorted(set(resumed))
    assert {*resumed, 20} == {*starts, 20} - {0}
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-20"]


@pytest.mark.slow
def test_the_same_command_goes_on_with_a_server(write: Write, server: str, folder: Path) -> None:
    priorities = {"url": server, "method": "prift_mass", "params": {"tau": 0.2}, "depth": 3}
    run(load_config(write("served", priorities=priorities, training=TRAINING)))
    config, out = write("same", priorities=priorities, training=ONE), folder / "same"
    command = [sys.executable, "-m", "tokenpriority_trainer", str(config), "--resume"]
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, **options) as process:
        while not (out / "checkpoint-8").exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said
    assert f"--resume: {out} holds no whole checkpoint: training begins\n" in said
    done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=240, **options, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^--resume: training goes on from {out}/checkpoint-[68]$", done.stderr, re.MULTILINE)
    assert_same_run(out, folder / "served")
    assert len(summary(out)["resumed_at"]) == 1


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HARMS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda at: (at / MARKER).unlink(), f"{MARKER}, which is written last, is missing"),
    (lambda at: _cut(at / MARKER), f"{MARKER} cannot be read: "),
    (lambda at: (at / MARKER).write_text('{"files": {}}'), f"{MARKER} cannot be read: .*identity"),
    (lambda at: (at / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    (lambda at: _cut(at / "optimizer.pt"), "optimizer.pt has [0-9]+ bytes, [0-9]+ were written"),
    (_empty, f"{MARKER}, which is written last, is missing"),
]


@pytest.mark.parametrize(
    ("harm", "reason"), HARMS, ids=["not sealed", "seal cut", "no seal of ours", "file missing", "file cut", "empty"]
)
def test_a_folder_that_is_no_whole_checkpoint_is_passed_over(part: Path, harm: Any, reason: str) -> None:
    before, passed = last_whole(part)
    assert before is not None
    assert (before.path, passed) == (part / "checkpoint-16", {})
    harm(part / "checkpoint-16")
    found, passed = last_whole(part)
    assert found is not None
    assert found.path == part / "checkpoint-14"
    assert list(passed) == [part / "checkpoint-16"]
    assert re.match(reason, passed[part / "checkpoint-16"])


def test_a_run_goes_on_from_the_last_whole_checkpoint(
    write: Write, whole: Path, part: Path, caplog: Any, capsys: Any
) -> None:
    _cut(part / "checkpoint-16" / "model.safetensors")
    run(load_config(write("part", priorities=DFT, training=TRAINING)), resume=True)
    assert f"{part / 'checkpoint-16'} is passed over: model.safetensors has " in caplog.text
    assert f"--resume: training goes on from {part / 'checkpoint-14'}\n" in capsys.readouterr().err
    assert_same_run(part, whole)
    assert summary(part)["resumed_at"] == [14]
    found, passed = last_whole(part)
    assert found is not None
    assert (found.step, passed) == (20, {})
    for later in ("checkpoint-18", "checkpoint-20"):
        shutil.rmtree(part / later)
    found, _ = last_whole(part)
    assert found is not None
    assert found.step == 16, "the folder that was passed over has been written anew"


def test_a_finished_run_is_left_as_it_is(write: Write, whole: Path, capsys: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    run(load_config(write("whole", priorities=DFT, training=TRAINING)), resume=True)
    assert f"--resume: {whole} holds a finished run of 20 steps: nothing is left to do\n" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_run_that_could_go_on_is_not_begun_anew(write: Write, part: Path) -> None:
    with pytest.raises(ConfigError, match="part holds an unfinished run, whole up to step 16: --resume goes on"):
        run(load_config(write("part", priorities=DFT, training=TRAINING)))
    assert last_whole(part)[0] is not None


def test_checkpoints_of_an_earlier_run_are_not_gone_on_from(write: Write, whole: Path, part: Path) -> None:
    shutil.copy(whole / "summary.json", part / "summary.json")
    run(load_config(write("part", priorities=DFT, training={**TRAINING, "max_steps": 2})))
    found, passed = last_whole(part)
    assert found is not None
    assert (found.step, {path.name for path in passed}) == (2, {"checkpoint-14", "checkpoint-16"})
    assert [line["step"] for line in metrics(part)] == [2]


def test_checkpoints_without_an_optimiser_are_nothing_to_go_on_from(write: Write) -> None:
    config = load_config(write("light", priorities=DFT, training={**TRAINING, "save_only_model": True}))
    with pytest.raises(ConfigError, match=r"--resume: training\.save_only_model leaves checkpoints without"):
        run(config, resume=True)


class Watcher(TrainerCallback):
    """Notes which checkpoint was whole each time another had been written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seen: list[int | None] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found, _ = last_whole(self._folder)
        self.seen.append(None if found is None else found.step)


@pytest.mark.parametrize("best", [False, True], ids=["last", "last and best"])
def test_an_older_checkpoint_is_deleted_once_the_new_one_is_whole(
    make_trainer: Any, weighted: Any, tmp_path: Path, best: bool
) -> None:
    rows, out = weighted(1.0), tmp_path / "out"
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "learning_rate": 0.1}
    if best:  # that of the greatest loss is the first
        saving |= {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": Dataset.from_list(rows)}
        saving |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer, watcher = make_trainer(rows, **saving), Watcher(out)
    keeper = CheckpointKeeper(trainer, {})
    for callback in (watcher, keeper):
        trainer.add_callback(callback)
    keeper.begin()
    trainer.train()
    assert watcher.seen == [None, 1, 2]
    left = sorted(path.name for path in out.glob("checkpoint-*"))
    assert left == (["checkpoint-1", "checkpoint-3"] if best else ["checkpoint-3"])
