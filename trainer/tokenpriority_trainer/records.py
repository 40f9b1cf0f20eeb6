"""The files a run leaves beside the model: `metrics.jsonl`, one line per logging step, and `summary.json`.

Knows files and JSON, and that a kill may come at any moment. Knows nothing of how the numbers are made.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"


class MetricsFile(TrainerCallback):
    """Writes each logged step as one line, flushed at once, from the main process.

    A fresh run begins the file anew; a resumed one keeps the lines up to its checkpoint's step, since those after it
    will be trained again. A line is written before every checkpoint, whatever `logging_steps`: otherwise the steps
    between the last line and a checkpoint would be in no line of a run resumed from it. Before evaluations too, on
    whose outcome a checkpoint may depend.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS
        self._begun = 0

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the signature is transformers'
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Keep the lines of steps that stand."""
        self._begun = state.global_step
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            old = self._path.read_text(encoding="utf-8").splitlines() if self._begun and self._path.exists() else []
            kept = [line for line in old if _step(line) <= self._begun]
            write_whole(self._path, "".join(f"{line}\n" for line in kept))

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """A checkpoint ends the window of a line."""
        control.should_log |= control.should_save or control.should_evaluate

    on_epoch_end = on_step_end

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Append a line for a training or evaluation step; the run's closing totals belong to the summary.

        The step a run is resumed at has its lines: an evaluation of `eval_on_start` would be a second one.
        """
        again = state.global_step == self._begun > 0
        if state.is_world_process_zero and logs and not again and not {"loss", "eval_loss"}.isdisjoint(logs):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_numbers({"step": state.global_step, **logs})) + "\n")

    def on_save(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Lines that no run will write again, since it would begin after them, are put on the disk."""
        if state.is_world_process_zero:
            sync(self._path)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`, indented."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SUMMARY, json.dumps(_numbers(summary), indent=2) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of an earlier run in this folder; empty if there is none."""
    path = folder / SUMMARY
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return summary


def mean_loss(state: TrainerState, own: float, *, after: int) -> float:
    """Mean loss over all steps of a run: up to step `after` by its log, since then `own`, this process's mean."""
    total, last = 0.0, 0.0
    for line in state.log_history:
        if "loss" in line and line["step"] <= after:
            total, last = total + line["loss"] * (line["step"] - last), line["step"]
    return (total + own * (state.global_step - after)) / max(state.global_step, 1)


def write_whole(path: Path, text: str) -> None:
    """Write a file that holds all of the text or, whenever the process is killed, what it held before."""
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _step(line: str) -> float:
    """The step of a line; infinity for one that a crash has cut off."""
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:
        return math.inf


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity (a gradient's norm can be either): None stands for them."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
