"""The guard: each limit, what a step that is not taken leaves behind, and one decision for all."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from transformers import TrainerCallback

from launching import TWO, launch
from run_config import ADAM, assert_close, metrics, writer
from tokenpriority_trainer import ColumnSource, Guard, PrioritySFTTrainer, Weighting
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError, GuardStop
from tokenpriority_trainer.guard import Memory, Seen
from tokenpriority_trainer.run import run

Rows = list[dict[str, Any]]
Make = Callable[..., Any]

NO_LIMIT = Guard(max_nll_ratio=1e9)


class Snapshots(TrainerCallback):
    """Everything a step may change, after each step."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        assert all(parameter.grad is None for parameter in rest["model"].parameters())
        names = ("model", "optimizer", "lr_scheduler")
        self.taken.append({name: copy.deepcopy(rest[name].state_dict()) for name in names})


@pytest.fixture
def guarded(make_model: Make, make_args: Make, tokenizer: Any) -> Make:
    """A trainer with a guard, on rows with ready weights, in their order."""

    def make(rows: Rows, guard: Guard | None, weighting: Any = None, model: Any = None, **changes: Any) -> Any:
        return PrioritySFTTrainer(
            model if model is not None else make_model(),
            make_args(**{**ADAM, **changes}),
            Dataset.from_list(rows),
            priorities=ColumnSource(),
            weighting=weighting,
            guard=guard,
            processing_class=tokenizer,
        )

    return make


def same(one: Any, other: Any) -> bool:
    """Bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def share(rows: Rows) -> float:
    weights = [w for r in rows for w, label in zip(r["priorities"][1:], r["labels"][1:], strict=True) if label != -100]
    return float(-sum(w for w in weights if w < 0) / sum(map(abs, weights)))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_is_as_if_its_batch_were_not_there(
    guarded: Make, weighted: Any, accumulation: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Parameters, Adam's state and the scheduler; with two micro-batches the first of the bad batch is a good one."""
    good, down = weighted(1.0), weighted(-9.0)
    bad = [*good[2:4], *down[4:6]]
    split = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    guard, seen = Guard(action="skip", max_negative_share=0.5), Snapshots()
    trainer = guarded([*good[:4], *good[4:], *bad, *good[1:5]], guard, max_steps=4, **split)
    trainer.add_callback(seen)
    trainer.train()
    without, expected = guarded([*good[:4], *good[4:], *good[1:5]], None, max_steps=3, **split), Snapshots()
    without.add_callback(expected)
    without.train()
    assert same(seen.taken[2], seen.taken[1])
    assert not any(same(seen.taken[1][name], seen.taken[0][name]) for name in seen.taken[0])
    assert same(seen.taken[3], expected.taken[2])
    lines = trainer.state.log_history[:4]
    assert [line["guard_skipped"] for line in lines] == [0, 0, 1, 0]
    assert "guard_skipped" not in without.state.log_history[0]
    value = share(bad)
    said = [record.getMessage() for record in caplog.records if record.name == "tokenpriority_trainer.guard"]
    expected_line = f"step 3: negative_share is {value:.4g}, limit 0.5 (guard.max_negative_share); the step is left out"
    assert said == [expected_line]


def test_a_gradient_that_is_not_finite_is_left_out(guarded: Make, make_model: Make, weighted: Any) -> None:
    model, seen, calls = make_model(), Snapshots(), []

    def broken(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * math.inf if len(calls) == 2 else gradient

    model.lm_head.weight.register_hook(broken)
    trainer = guarded(weighted(1.0), Guard(action="skip"), model=model, max_steps=3)
    trainer.add_callback(seen)
    trainer.train()
    assert same(seen.taken[1], seen.taken[0])
    assert not same(seen.taken[2]["model"], seen.taken[1]["model"])
    assert all(value.isfinite().all() for value in seen.taken[2]["model"].values())


@pytest.mark.parametrize("what", ["negative_share", "grad_norm", "not finite"])
def test_stop_names_field_value_and_limit_before_the_step_is_taken(
    guarded: Make, make_model: Make, signed: Rows, what: str
) -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    if what == "negative_share":
        guard = Guard(max_negative_share=0.01)
        said = f"negative_share is {share(signed):.4g}, limit 0.01 (guard.max_negative_share)"
    elif what == "grad_norm":
        free = guarded(signed, None)
        free.train()
        norm = free.state.log_history[0]["grad_norm"]
        guard = Guard(max_grad_norm=0.5)
        said = f"grad_norm is {norm:.4g}, limit 0.5 (guard.max_grad_norm)"
        assert norm > 1.0, "which the trainer's own clipping would have hidden"
    else:
        model.lm_head.weight.register_hook(lambda gradient: gradient.fill_(math.inf))
        guard, said = Guard(), "grad_norm is inf, limit any finite number"
    with pytest.raises(GuardStop, match=re.escape(f"step 1: {said}; the step was not taken") + "$") as stopped:
        guarded(signed, guard, model=model, max_steps=3).train()
    assert "\n" not in str(stopped.value)
    assert same(model.state_dict(), before)


def test_skipping_ends_after_patience(guarded: Make, make_model: Make, weighted: Any) -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    trainer = guarded(
        weighted(-1.0), Guard(action="skip", patience=2, max_negative_share=0.9), model=model, max_steps=9
    )
    ending = "step 3: .* limit 0.9 .*; 2 steps in a row were left out before it \\(guard.patience\\)"
    with pytest.raises(GuardStop, match=ending):
        trainer.train()
    assert [line["guard_skipped"] for line in trainer.state.log_history] == [1, 1]
    assert same(model.state_dict(), before)


@pytest.fixture
def runaway() -> Rows:
    """Ascent on the same few tokens that are barely held on to: their NLL only rises."""
    ids = [[5 + (i * j + i // 2) % 3 for i in range(8)] for j in range(8)]
    return [{"input_ids": row, "labels": row, "priorities": [0.0, 0.01] + [-1.0] * 6} for row in ids]


def test_a_runaway_of_the_retained_nll_stops_the_run_and_so_does_its_resumption(
    guarded: Make, runaway: Rows, tmp_path: Path
) -> None:
    rule, steps = Weighting(negatives="ascent"), {"max_steps": 24, "warmup_steps": 0, "learning_rate": 0.02}
    free = guarded(runaway, NO_LIMIT, rule, **steps)
    free.train()
    nlls = [line["nll_pos"] for line in free.state.log_history[:24]]
    means = [(one + two) / 2 for one, two in pairwise(nlls)]  # every batch has as many tokens
    limits = [1.5 * max(min(means[: k + 1]), 1.0) for k in range(len(means))]
    first = next(k for k, (mean, limit) in enumerate(zip(means, limits, strict=True)) if mean > limit)
    step = first + 2

    saving = {**steps, "save_strategy": "steps", "save_steps": 1}
    guard = Guard(max_nll_ratio=1.5, window=2)
    with pytest.raises(GuardStop) as stopped:
        guarded(runaway, guard, rule, **saving).train()
    found = re.fullmatch(
        r"step (\d+): nll_pos over 2 steps is ([\d.]+), limit ([\d.]+): 1.5 times its lowest, at least 1 "
        r"\(guard.max_nll_ratio\); the step was not taken",
        str(stopped.value),
    )
    assert found
    assert int(found[1]) == step
    assert [float(found[2]), float(found[3])] == pytest.approx([means[first], limits[first]], rel=1e-3)

    out = tmp_path / "out"
    last = out / f"checkpoint-{step - 1}"
    assert last.exists()
    assert not (out / f"checkpoint-{step}").exists()
    again = guarded(runaway, guard, rule, **saving)
    with pytest.raises(GuardStop, match=re.escape(str(stopped.value))):  # its window and lowest are the checkpoint's
        again.train(resume_from_checkpoint=str(last))
    further = guarded(runaway, NO_LIMIT, rule, **steps)
    further.train(resume_from_checkpoint=str(last))
    assert same(further.model.state_dict(), free.model.state_dict())


def test_a_resumed_run_has_skipped_what_the_whole_run_skipped(guarded: Make, weighted: Any, tmp_path: Path) -> None:
    good, down = weighted(1.0), weighted(-9.0)
    rows = [*good[:2], *down[2:4], *good[4:8], *down[:2], *good[2:4]]
    two = {"max_steps": 6, "per_device_train_batch_size": 2}
    guard = Guard(action="skip", max_negative_share=0.5, patience=1)
    whole = guarded(rows, guard, **two, save_strategy="steps", save_steps=3)
    whole.train()
    resumed = guarded(rows, guard, **two)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    assert same(resumed.lr_scheduler.state_dict(), whole.lr_scheduler.state_dict())
    assert [line["guard_skipped"] for line in resumed.state.log_history[:6]] == [0, 1, 0, 0, 1, 0]


def test_the_window_is_a_mean_over_tokens_of_steps_that_have_some() -> None:
    memory = Memory()
    steps = [(8.0, 2.0), (0.0, 0.0), (1.0, 1.0), (6.0, 3.0), (0.0, 0.0)]
    found = [memory.see(Seen(nll, tokens, 0.0, 1.0), 2) for nll, tokens in steps]
    assert found == [None, None, 9 / 3, 7 / 4, 7 / 4]
    assert memory.lowest == 7 / 4


@pytest.fixture(scope="session")
def student(save_student: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    save_student(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path, student: Path, text: str) -> Callable[..., Path]:
    return writer(tmp_path, student, text)


RISING = {"schedule": {"start": 0.0, "end": 1.0}}
"""No negative weight counts in the first step, every one does in the second."""


@pytest.mark.slow
def test_the_command_ends_in_one_line_and_goes_on_from_the_last_checkpoint(
    write: Callable[..., Path], command_line: list[str], tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    config = write(priorities=RISING, guard={"max_negative_share": 0.0}, training=saving)
    done = subprocess.run([*command_line, "train", str(config)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"GuardStop: step 2: negative_share is 0\.\d+, limit 0 \(guard\.max_negative_share\); the step was not taken",
        said,
    )
    assert "Traceback" not in done.stderr
    out = tmp_path / "run"
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["complete"] is False
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-1"]
    run(load_config(write(priorities=RISING, training=saving)), resume=True)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["complete"], summary["steps"]) == (True, 4)
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_processes_skip_the_steps_that_one_skips(write: Callable[..., Path], tmp_path: Path) -> None:
    """The limit lies among the shares of the global batches; those of the processes' halves differ."""
    sgd = {"max_steps": 4, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "linear"}
    run(load_config(write("free", training={**sgd, "max_steps": 3})))
    shares = sorted(line["negative_share"] for line in metrics(tmp_path / "free"))
    guard = {"action": "skip", "max_negative_share": (shares[0] + shares[1]) / 2}
    run(load_config(write("one", guard=guard, training=sgd)))
    two = write("two", guard=guard, training={**sgd, "gradient_accumulation_steps": 1})
    done = launch(*TWO, "-m", "tokenpriority_trainer", str(two))
    skipped = [line["guard_skipped"] for line in metrics(tmp_path / "one")]
    assert set(skipped) == {0, 1}
    assert [line["guard_skipped"] for line in metrics(tmp_path / "two")] == skipped
    assert_close(tmp_path / "two", tmp_path / "one", atol=1e-5)
    assert done.stderr.count("the step is left out") == sum(skipped), "the main process alone says so"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"action": "warn"}, "guard.action: .*'stop' or 'skip'.*got 'warn'"),
        ({"max_negative_share": 1.5}, "guard.max_negative_share: .*less than or equal to 1, got 1.5"),
        ({"max_grad_norm": 0}, "guard.max_grad_norm: .*greater than 0, got 0"),
        ({"max_nll_ratio": 1.0}, "guard.max_nll_ratio: .*greater than 1, got 1.0"),
        ({"window": 0}, "guard.window: .*greater than or equal to 1, got 0"),
        ({"patience": 0}, "guard.patience: .*greater than or equal to 1, got 0"),
        ({"max_nll": 1}, "guard.max_nll: Extra inputs"),
    ],
)
def test_limits_out_of_their_range_are_refused(write: Callable[..., Path], values: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load_config(write(guard=values))
    with pytest.raises(ValidationError):
        Guard(**values)


def test_what_deepspeed_cannot_do_is_refused() -> None:
    Guard().check_deepspeed()
    with pytest.raises(ConfigError, match=r"guard\.action: 'skip' cannot be under DeepSpeed"):
        Guard(action="skip").check_deepspeed()
    with pytest.raises(ConfigError, match=r"guard\.max_grad_norm: DeepSpeed does not always"):
        Guard(max_grad_norm=1.0).check_deepspeed()
