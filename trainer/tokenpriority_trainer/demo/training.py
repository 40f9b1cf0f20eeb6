"""The three trainings, each its own `tokenpriority train` process against the one server.

Knows the recipes, the trainer's configuration file and the files it leaves. Knows nothing of models or losses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenpriority_trainer.demo.processes import Child, Children, wait_for
from tokenpriority_trainer.demo.scale import Scale
from tokenpriority_trainer.demo.server import Server
from tokenpriority_trainer.demo.toml import write_toml

IDIOM_PRIORITY = -1.0
_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What sets one training apart from the others."""

    name: str
    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    labelled: bool = False
    """Whether the unsafe idiom is labelled, with priority -1."""


def recipes(scale: Scale) -> tuple[Recipe, ...]:
    """Uniform, positive and signed, in this order."""
    mask = {"tau": scale.tau}
    return (
        Recipe("uniform", "uniform"),
        Recipe("positive", "prift_mass", mask),
        Recipe("signed", "prift_mass", mask, labelled=True),
    )


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the trainings of one seed share: the student they start from and the set, without and with labels."""

    student: Path
    plain: Path
    labelled: Path
    folder: Path
    """Where each training gets a folder of its own."""
    seed: int


@dataclass(frozen=True, slots=True)
class Training:
    """A training under way or done."""

    recipe: Recipe
    child: Child
    folder: Path
    """Where its model, metrics.jsonl and summary.json go."""

    def curve(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far; empty before the first."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def summary(self) -> dict[str, Any]:
        """summary.json of a finished training."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return summary


def start(children: Children, server: Server, scale: Scale, inputs: Inputs, recipe: Recipe) -> Training:
    """Start one training; an earlier run's files in its folder are replaced."""
    folder = inputs.folder / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "summary.json"):
        (folder / name).unlink(missing_ok=True)
    config = folder / "train.toml"
    tables: dict[str, dict[str, Any]] = {
        "model": {"path": inputs.student, "dtype": "float32"},
        "data": {"train": inputs.labelled if recipe.labelled else inputs.plain},
        "priorities": {"url": server.url, "method": recipe.method, "params": recipe.params},
        "training": _arguments(scale, inputs.seed, folder),
    }
    write_toml(config, tables)
    child = children.start(f"seed-{inputs.seed}-{recipe.name}", ["train", str(config)])
    return Training(recipe, child, folder)


def finish(trainings: Sequence[Training], server: Server, report: Callable[[Training, int], None]) -> None:
    """Return once every training has ended well, reporting the steps each has done on the way.

    Raises ChildFailed if one of them, or the server, ends with an error.
    """

    def done() -> bool:
        going = [training.child.running() for training in trainings]
        for training in trainings:
            curve = training.curve()
            report(training, curve[-1]["step"] if curve else 0)
        return not any(going)

    wait_for(done, [server.child], seconds=_SECONDS, what="the trainings")


def _arguments(scale: Scale, seed: int, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": scale.tuning_steps,
        "per_device_train_batch_size": scale.batch,
        "max_length": scale.length,
        "learning_rate": scale.tuning_lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": max(1, scale.tuning_steps // 20),
        "logging_steps": max(1, scale.tuning_steps // 60),
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": seed,
    }
