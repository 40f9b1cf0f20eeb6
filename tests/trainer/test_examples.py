"""The example configurations run as they are, but for models, data, addresses and the size of a step."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tokenpriority_trainer
from run_config import TRAINING, metrics, toml
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.fetching import fetch_weights
from tokenpriority_trainer.run import run

EXAMPLES = Path(tokenpriority_trainer.__file__).parents[1] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.toml"))
SMALL = {key: TRAINING[key] for key in ("max_steps", "max_length", "logging_steps", "use_cpu", "disable_tqdm")}
STEPS = 2
GPU_ONLY = {"bf16": False, "tf32": None, "attn_implementation": None}


@pytest.fixture
def rows(text: str, tmp_path: Path) -> Path:
    """Lines with labels and lines of the retain set."""
    file = tmp_path / "train.jsonl"
    labelled = [
        {"text": text[60 * i : 60 * i + 50], "spans": [{"start": 3, "end": 9, "priority": -1.0}]} for i in range(8)
    ]
    retained = [{"text": text[60 * i : 60 * i + 50], "spans": []} for i in range(8, 24)]
    file.write_text("\n".join(json.dumps(row) for row in labelled + retained), encoding="utf-8")
    return file


def with_kl(example: Path, folder: Path) -> Path:
    """The unlearning example with what its comment on KL says, done."""
    before, _, after = example.read_text(encoding="utf-8").partition("# Without a server, held to the model")
    comment, _, after = after.partition("\n\n")
    kept = [line for line in before.splitlines() if not line.startswith(("url =", "method =", "params ="))]
    said = [line.removeprefix("#   ") for line in comment.splitlines() if line.startswith("#   ")]
    path = folder / example.name
    path.write_text("\n".join([*kept, *said, after]), encoding="utf-8")
    return path


def adapted(example: Path, folder: Path, changes: dict[str, dict[str, Any]]) -> Path:
    """The example with these keys put in the place of its own."""
    whole = tomllib.loads(example.read_text(encoding="utf-8"))
    for section, values in changes.items():
        whole[section] |= {
            key: value for key, value in values.items() if section == "training" or key in whole[section]
        }
    whole["training"] = {key: value for key, value in whole["training"].items() if key not in GPU_ONLY}
    lines = [
        line
        for name, values in whole.items()
        for line in (f"[{name}]", *(f"{k} = {toml(v)}" for k, v in values.items()))
    ]
    path = folder / example.name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_there_is_one_for_each_way_of_training() -> None:
    assert {"lora.toml", "fsdp2.toml", "unlearning.toml", "offline.toml"} <= set(NAMES)


def test_the_unlearning_example_trains_with_kl(save_student: Any, rows: Path, tmp_path: Path) -> None:
    student = str(save_student(tmp_path / "student"))
    out = tmp_path / "out"
    small = {**SMALL, "max_steps": STEPS, "output_dir": str(out), "eval_strategy": "no"}
    changes: dict[str, dict[str, Any]] = {
        "model": {"path": student, "dtype": "float32"},
        "data": {"train": str(rows), "eval": str(rows)},
        "priorities": {"local": {"reference": student}},
        "training": {**small, "gradient_accumulation_steps": 2},
    }
    folder = tmp_path / "kl"
    folder.mkdir()
    run(load_config(adapted(with_kl(EXAMPLES / "unlearning.toml", folder), tmp_path, changes)))
    steps = json.loads((out / "summary.json").read_text(encoding="utf-8"))["composition"]
    assert any("asft" in step and "kl" in step for step in steps)
    assert metrics(out)[0]["nll_neg"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains(name: str, server: str, save_student: Any, rows: Path, tmp_path: Path) -> None:
    student = save_student(tmp_path / "student")
    out = tmp_path / "out"
    small = {**SMALL, "max_steps": STEPS, "output_dir": str(out), "save_steps": STEPS, "eval_steps": STEPS}
    changes: dict[str, dict[str, Any]] = {
        "model": {"path": str(student), "dtype": "float32"},
        "data": {"train": str(rows), "eval": str(rows)},
        "priorities": {"url": server, "store": str(tmp_path / "weights.db")},
        "training": {**small, "gradient_accumulation_steps": 2},
    }
    offline = name == "offline.toml"
    if offline:
        fetch_weights(load_config(adapted(EXAMPLES / name, tmp_path, changes)))
        changes["priorities"]["url"] = "http://127.0.0.1:9"  # where nobody answers
    run(load_config(adapted(EXAMPLES / name, tmp_path, changes)), resume=True, offline=offline)
    assert [line["step"] for line in metrics(out) if "loss" in line][-1] == STEPS
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["complete"]
    assert (out / "report.html").exists()
