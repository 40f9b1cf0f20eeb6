"""How a training is followed at the terminal: a bar in an interactive one, one plain line per logged step elsewhere.

Knows rich, clocks and the names of metrics. Takes the place of transformers' own bar under `tokenpriority train`;
TensorBoard and its like get the same figures from the trainer. Knows nothing of how a figure is made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

_REFRESHES = 2.0  # per second: each takes some milliseconds of the training's own process


def figures(logs: Mapping[str, Any]) -> str:
    """The figures of a logged step in one line; what was not logged (NLL- without negative weights) is left out."""
    parts = [
        f"{name} {logs[key]:.4g}"
        for key, name in (("loss", "loss"), ("nll_pos", "NLL+"), ("nll_neg", "NLL-"), ("eval_loss", "eval loss"))
        if logs.get(key) is not None
    ]
    parts += [f"wait {100 * logs['wait_share']:.2g} %"] if "wait_share" in logs else []
    parts += [f"{logs['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in logs else []
    return "  ".join(parts)


@contextmanager
def followed(trainer: Trainer) -> Iterator[None]:
    """Shows a training while the context lasts, in place of transformers' own bar, and tidies up however it ends.

    A bar where standard error is a terminal that can show one, and `disable_tqdm` is not set; else lines.
    """
    console = Console(stderr=True)
    bar = sys.stderr.isatty() and not console.is_dumb_terminal and not trainer.args.disable_tqdm
    shown: TrainingBar | TrainingLines = TrainingBar(console) if bar else TrainingLines()
    for theirs in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):
        trainer.remove_callback(theirs)
    trainer.add_callback(shown)
    try:
        yield
    finally:
        shown.close()


class _Clock:
    """Elapsed and remaining time of a run, from the steps done since it was started or resumed."""

    def __init__(self, state: TrainerState) -> None:
        self._since, self._first = time.monotonic(), state.global_step

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._since

    def left(self, state: TrainerState) -> str:
        """Remaining time; a dash before the first step has shown how long one takes."""
        done = state.global_step - self._first
        return _hours(self.elapsed / done * (state.max_steps - state.global_step)) if done else "-"


class TrainingLines(TrainerCallback):
    """One line on standard error per logged step, from the main process."""

    _clock: _Clock

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the signatures are transformers'
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Count time from now."""
        self._clock = _Clock(state)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Say the figures; the run's closing totals are in summary.json."""
        if state.is_world_process_zero and logs and (said := figures(logs)):
            times = f"elapsed {_hours(self._clock.elapsed)}  left {self._clock.left(state)}"
            print(f"step {state.global_step}/{state.max_steps}  {said}  {times}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class TrainingBar(TrainerCallback):
    """A bar of optimiser steps with the last logged figures under it, from the main process.

    `close` gives the terminal back as it was; it must be called however training ends, and may be called twice.
    """

    def __init__(self, console: Console) -> None:
        self._bar = _Bar(console)
        self._clock: _Clock | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Show the bar; a resumed run begins at its checkpoint's step."""
        if state.is_world_process_zero:
            self._clock = _Clock(state)
            self._bar.begin(state.global_step, state.max_steps)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """One step on."""
        if self._clock is not None:
            self._bar.to(state.global_step, self._clock.left(state))

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Show a training step's figures; those of an evaluation stay above the bar."""
        if self._clock is None or not logs:
            return
        if "loss" in logs:
            self._bar.say(figures(logs))
        elif "eval_loss" in logs:
            self._bar.print(f"step {state.global_step}: {figures(logs)}", markup=False, highlight=False)

    def on_prediction_step(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Say that it evaluates."""
        self._bar.doing("evaluating")

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """It trains again."""
        self._bar.doing("training")

    def close(self) -> None:
        """Stop drawing and show the cursor."""
        self._bar.stop()


class _Bar(Progress):
    """A single bar with a line of figures under it."""

    def __init__(self, console: Console) -> None:
        self._said = Text("")
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=console,
            refresh_per_second=_REFRESHES,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """What rich draws."""
        yield from super().get_renderables()
        yield self._said

    def begin(self, done: int, total: int) -> None:
        """Show the bar at its first step."""
        self._task = self.add_task("training", total=total, completed=done, left="-")
        self.start()

    def to(self, done: int, left: str) -> None:
        """So many steps are done."""
        self.update(self._task, completed=done, left=left)

    def doing(self, what: str) -> None:
        """Say what goes on, if the bar is shown."""
        if self.tasks:
            self.update(self._task, description=what)

    def say(self, line: str) -> None:
        """The line under the bar."""
        self._said = Text(line, no_wrap=True, overflow="ellipsis")


def _hours(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
