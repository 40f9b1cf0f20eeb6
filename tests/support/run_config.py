"""Configuration files for whole runs, and what a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

TRAINING = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "learning_rate": 0.01,
    "max_length": 64,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}

SGD: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "max_steps": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": None,
    "dataloader_pin_memory": False,
    "per_device_train_batch_size": 8,
}
"""Arguments under which one optimiser step of SGD moves every parameter by minus its gradient, on one CPU."""


ADAM: dict[str, Any] = {
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "lr_scheduler_type": "constant_with_warmup",  # the rate is a function of the scheduler's steps alone
    "warmup_steps": 10,
    "max_grad_norm": 1.0,
    "train_sampling_strategy": "sequential",
}
"""Arguments of an optimiser whose momentum, decay and rate tell a step that was taken from one that was not."""


def writer(tmp_path: Path, student: Path, text: str) -> Callable[..., Path]:
    """Writes configurations of this student and their data; `sections` replace or add keys by section."""
    data = tmp_path / "train.jsonl"
    rows = [{"text": text[50 * i : 50 * i + 40 + 3 * i]} for i in range(24)]
    spans = [[{"start": 3, "end": 9, "priority": -1.0}] if i % 2 else [] for i in range(24)]
    lines = [json.dumps({**row, "spans": each}) for row, each in zip(rows, spans, strict=True)]
    data.write_text("\n".join(lines), encoding="utf-8")

    def config(name: str = "run", **sections: dict[str, Any]) -> Path:
        whole: dict[str, dict[str, Any]] = {
            "model": {"path": str(student)},
            "data": {"train": str(data)},
            "training": {**TRAINING, "output_dir": str(tmp_path / name)},
        }
        for section, changes in sections.items():
            whole[section] = {**whole.get(section, {}), **changes}
        lines = []
        for section, values in whole.items():
            lines += [f"[{section}]", *(f"{key} = {toml(value)}" for key, value in values.items())]
        path = tmp_path / f"{name}.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return config


def toml(value: Any) -> str:
    """A value in TOML; strings, numbers, booleans and lists are JSON's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_close(found: Path, expected: Path, atol: float) -> None:
    mine = parameters(found)
    for name, value in parameters(expected).items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=atol, msg=f"{name}: {{}}".format)
