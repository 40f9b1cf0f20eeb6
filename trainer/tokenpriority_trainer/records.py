"""The files a run leaves beside the model: `metrics.jsonl`, one line per logging step, and `summary.json`.

Knows files and JSON. Knows nothing of how the numbers are made.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"


class MetricsFile(TrainerCallback):
    """Writes each logged step as one line, flushed at once, from the main process.

    A fresh run begins the file anew; a resumed one keeps the lines up to its checkpoint's step, since those after it
    will be trained again.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the signature is transformers'
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Keep the lines of steps that stand."""
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            old = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
            kept = [line for line in old if _step(line) <= state.global_step]
            self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Append a line for a training or evaluation step; the run's closing totals belong to the summary."""
        if state.is_world_process_zero and logs and not {"loss", "eval_loss"}.isdisjoint(logs):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_numbers({"step": state.global_step, **logs})) + "\n")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`, indented."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).write_text(json.dumps(_numbers(summary), indent=2) + "\n", encoding="utf-8")


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of an earlier run in this folder; empty if there is none."""
    path = folder / SUMMARY
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return summary


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
