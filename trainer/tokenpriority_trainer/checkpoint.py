"""Checkpoints that a run may go on from: whole ones, with what they were made by.

transformers writes the files of a checkpoint into their final folder one after another, and deletes older ones in the
same way, so a kill leaves folders that look like checkpoints and are none. A checkpoint of ours holds one file more,
`tokenpriority.json`, written last: the other files with their sizes, what decides the run's numbers (`identity.py`),
and the totals so far. A folder without that file, or whose files are not those it lists, is never resumed from.

Knows folders and files. Knows nothing of what is in TRL's files or how they are loaded.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.identity import check_same
from tokenpriority_trainer.lineage import Lineage
from tokenpriority_trainer.records import read_summary, sync, write_whole
from tokenpriority_trainer.trainer import PrioritySFTTrainer

MARKER = "tokenpriority.json"

_NAME = re.compile(r"checkpoint-(\d+)")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run's steps took so far; a step that a kill made it train again counts once."""

    tokens: int = 0
    """Tokens trained on or over, padding apart, over all processes."""
    seconds: float = 0.0
    wait_seconds: float = 0.0
    """Seconds waited for weights, by the process that waited longest."""
    resumed_at: tuple[int, ...] = ()
    """Steps after which the run went on from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Held:
    """The content of `tokenpriority.json`."""

    files: dict[str, int]
    """Size in bytes of every other file, by its path in the folder."""
    identity: dict[str, Any]
    """What decides the run's numbers."""
    totals: Totals


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    step: int
    held: Held


class NotWhole(Exception):
    """A folder is no whole checkpoint; says why."""


def seal(path: Path, identity: Mapping[str, Any], totals: Totals) -> None:
    """Write a checkpoint's `tokenpriority.json`, once its other files are on the disk."""
    found = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(MARKER)]
    for each in [*found, *{file.parent for file in found}]:
        sync(each)
    files = {str(file.relative_to(path)): file.stat().st_size for file in found}
    write_whole(path / MARKER, json.dumps(asdict(Held(files, dict(identity), totals)), indent=2) + "\n")
    for folder in (path, path.parent):
        sync(folder)


def read(path: Path) -> Held:
    """What a checkpoint's `tokenpriority.json` says. Raises NotWhole if it or a file it lists is not as written."""
    try:
        held = msgspec.json.decode((path / MARKER).read_bytes(), type=Held)
    except FileNotFoundError:
        raise NotWhole(f"{MARKER}, which is written last, is missing") from None
    except msgspec.DecodeError as error:
        raise NotWhole(f"{MARKER} cannot be read: {error}") from None
    for name, size in held.files.items():
        file = path / name
        if not file.is_file():
            raise NotWhole(f"{name} is missing")
        if file.stat().st_size != size:
            raise NotWhole(f"{name} has {file.stat().st_size} bytes, {size} were written")
    return held


def last_whole(folder: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The whole checkpoint of the highest step, None if there is none, and why each later folder is passed over."""
    passed: dict[Path, str] = {}
    for step, path in sorted(_numbered(folder).items(), reverse=True):
        try:
            return Checkpoint(path, step, read(path)), passed
        except NotWhole as reason:
            passed[path] = str(reason)
    return None, passed


def starting_point(args: SFTConfig, *, resume: bool) -> Checkpoint | None:
    """The checkpoint in `output_dir` to go on from, None to begin; with `resume` a line on stderr says which.

    Folders that are no whole checkpoint are passed over with a warning. Raises ConfigError if a run that could go on
    would be begun anew, or could never go on.
    """
    folder = Path(args.output_dir)
    found, passed = last_whole(folder)
    if not resume:
        if found is not None and not read_summary(folder).get("complete"):
            raise ConfigError(
                f"training.output_dir: {folder} holds an unfinished run, whole up to step {found.step}: --resume goes "
                "on with it; to begin anew delete it, or name another folder"
            )
        return None
    if args.save_only_model:
        raise ConfigError("--resume: training.save_only_model leaves checkpoints without the optimiser's state")
    if args.process_index == 0:
        for path, reason in passed.items():
            _LOG.warning("--resume: %s is passed over: %s", path, reason)
        begins = f"{folder} holds no whole checkpoint: training begins"
        print(f"--resume: {begins if found is None else f'training goes on from {found.path}'}", file=sys.stderr)
    return found


def check_unchanged(checkpoint: Checkpoint, identity: Mapping[str, Any], *, allowed: bool, main: bool) -> None:
    """Raises ConfigError naming the first field that has changed since the checkpoint; a warning if `allowed`."""
    check_same(checkpoint.held.identity, identity, at=checkpoint.path.name, allowed=allowed, main=main)


class CheckpointKeeper(TrainerCallback):
    """Seals every checkpoint of a run, and only then deletes older ones.

    transformers itself would delete the last whole checkpoint before the new one is sealed, so `save_total_limit` is
    taken from it. So is its Lineage: `identity` holds all that this would compare, and has been compared. `checkpoint`
    is the one the run goes on from.
    """

    def __init__(
        self, trainer: PrioritySFTTrainer, identity: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> None:
        self._trainer, self._identity = trainer, identity
        trainer.remove_callback(Lineage)
        self._folder = Path(str(trainer.args.output_dir))
        self._limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        self._step, self._before = 0, Totals()
        if checkpoint is not None:
            before, self._step = checkpoint.held.totals, checkpoint.step
            self._before = replace(before, resumed_at=(*before.resumed_at, self._step))
        self._since = time.perf_counter()
        trainer.sign_metrics.tokens = self._before.tokens
        trainer.sign_metrics.wait_seconds = self._before.wait_seconds

    def begin(self) -> None:
        """Make checkpoints after the step the run begins at whole no longer: they are of a future trained anew.

        Every process must call, and does so once it has chosen where to begin. Raises ConfigError if they chose unlike
        checkpoints.
        """
        args, accelerator = self._trainer.args, self._trainer.accelerator
        steps = accelerator.gather(torch.tensor([self._step], device=accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise ConfigError(f"training.output_dir: the processes found checkpoints of unlike steps {steps} in it")
        if args.should_save:
            for step, path in _numbered(self._folder).items():
                if step > self._step:
                    (path / MARKER).unlink(missing_ok=True)

    def totals(self) -> Totals:
        """Of all steps that stand, earlier processes' included."""
        metrics, before = self._trainer.sign_metrics, self._before
        seconds = before.seconds + time.perf_counter() - self._since
        return Totals(metrics.tokens, seconds, metrics.wait_seconds, before.resumed_at)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002  # the signature is transformers'
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Count time from now, and finish a deletion that a kill has cut off."""
        self._since = time.perf_counter()
        if args.should_save and state.global_step:
            self._delete_older(state)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Seal the checkpoint once every process has written its files."""
        self._trainer.accelerator.wait_for_everyone()
        if not args.should_save:
            return
        if not args.save_only_model:
            saved = _numbered(self._folder)[state.global_step]
            seal(saved, self._identity, self.totals())
        self._delete_older(state)

    def _delete_older(self, state: TrainerState) -> None:
        """Keep to the limit: folders of later steps, which an earlier run left, go first, then the oldest."""
        if not self._limit:
            return
        now, best = state.global_step, Path(state.best_model_checkpoint or "").name
        found = _numbered(self._folder)
        order = sorted(found, key=lambda step: (step <= now, step))
        spare = [found[step] for step in order if step != now and found[step].name != best]
        for path in spare[: max(0, len(found) - self._limit)]:
            shutil.rmtree(path, ignore_errors=True)


def _numbered(folder: Path) -> dict[int, Path]:
    """The folders named as checkpoints, by step."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*") if path.is_dir())
    return {int(name[1]): path for name, path in named if name is not None}
