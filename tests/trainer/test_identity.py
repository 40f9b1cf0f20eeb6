"""What must be as it was for a run to go on: each change is refused by name, or allowed and told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from run_config import writer
from tokenpriority_trainer.checkpoint import MARKER, last_whole
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.run import run

Write = Callable[..., Path]

TRAINING: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "seed": 5}
DFT = {"method": "dft"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity")


@pytest.fixture(scope="module")
def write(folder: Path, save_student: Callable[..., Path], text: str) -> Write:
    return writer(folder, save_student(folder / "student"), text)


@pytest.fixture(scope="module")
def begun(write: Write, folder: Path) -> Path:
    """What is left of a run that ended after step 2."""
    run(load_config(write("begun", priorities=DFT, training=TRAINING)))
    shutil.rmtree(folder / "begun" / "checkpoint-4")
    unfinish(folder / "begun")
    return folder / "begun"


@pytest.fixture
def part(begun: Path, folder: Path) -> Iterator[Path]:
    """A copy of it."""
    yield Path(shutil.copytree(begun, folder / "part"))
    shutil.rmtree(folder / "part")


def summary(run_folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    return found


def unfinish(run_folder: Path) -> None:
    (run_folder / "summary.json").write_text(json.dumps({**summary(run_folder), "complete": False}), encoding="utf-8")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"training": {"seed": 6}}, "training.seed: was 5 at checkpoint-2, is 6"),
    "rate": ({"training": {"learning_rate": 0.5}}, "training.learning_rate: was 0.01 at checkpoint-2, is 0.5"),
    "steps": ({"training": {"max_steps": 30}}, "training.max_steps: was 4 at checkpoint-2, is 30"),
    "batch": (
        {"training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}},
        r"training.per_device_train_batch_size: was 4 at checkpoint-2, is 8 \(and 1 more\)",
    ),
    "accumulation": (
        {"training": {"gradient_accumulation_steps": 1}},
        "training.gradient_accumulation_steps: was 2 at checkpoint-2, is 1",
    ),
    "packing": ({"training": {"packing": True}}, "training.packing: was false at checkpoint-2, is true"),
    "length": ({"training": {"max_length": 32}}, "training.max_length: was 64 at checkpoint-2, is 32"),
    "method": ({"priorities": {"method": "uniform"}}, 'priorities.method: was "dft" at checkpoint-2, is "uniform"'),
    "params": (
        {"priorities": {"params": {"source": "student"}}},
        'priorities.params.source: was not set at checkpoint-2, is "student"',
    ),
    "clip": ({"priorities": {"clip": [-1.0, 1.0]}}, r"priorities.clip: was not set at checkpoint-2, is \[-1.0, 1.0\]"),
    "negatives": ({"priorities": {"negatives": "ascent"}}, 'priorities.negatives: was not set .*, is "ascent"'),
    "lora": ({"model.lora": {"r": 2}}, "model.lora.r: was not set at checkpoint-2, is 2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_and_named(write: Write, part: Path, change: str) -> None:
    changes, what = CHANGES[change]
    always: dict[str, dict[str, Any]] = {"priorities": DFT, "training": TRAINING}
    sections = {name: {**always.get(name, {}), **changes.get(name, {})} for name in {**always, **changes}}
    with pytest.raises(ConfigError, match=f"^--resume: {what}.*; --allow-changes goes on") as refused:
        run(load_config(write("part", **sections)), resume=True)
    assert "\n" not in str(refused.value)
    assert summary(part)["complete"] is False


def test_other_data_is_refused_by_its_content(write: Write, part: Path, folder: Path) -> None:
    data = (folder / "train.jsonl").read_bytes()
    same, other = folder / "same.jsonl", folder / "other.jsonl"
    same.write_bytes(data)
    other.write_bytes(data.replace(b"0", b"1"))
    with pytest.raises(ConfigError, match=r'^--resume: data.train: was "blake2b [0-9a-f]{32}" .*, is "blake2b '):
        run(load_config(write("part", priorities=DFT, training=TRAINING, data={"train": str(other)})), resume=True)
    run(load_config(write("part", priorities=DFT, training=TRAINING, data={"train": str(same)})), resume=True)


def test_another_model_on_the_server_and_another_composition_are_refused(
    write: Write, server: str, folder: Path
) -> None:
    priorities = {"url": server, "method": "token_cleaning", "params": {"scope": "dataset", "threshold": 0.25}}
    training = {**TRAINING, "max_steps": 2}
    run(load_config(write("scored", priorities=priorities, training=training)))
    config = write("scored", priorities=priorities, training=training)
    out = folder / "scored"
    kept = summary(out)
    unfinish(out)
    seal = out / "checkpoint-2" / MARKER
    held = json.loads(seal.read_text(encoding="utf-8"))
    said = {name: value for name, value in held["identity"].items() if name.startswith(("composition.", "fingerprint"))}
    assert said.pop("fingerprints.reference") == kept["fingerprints"]["reference"]
    assert said.pop("fingerprints.base") == kept["fingerprints"]["base"]
    assert [f"{name.removeprefix('composition.')}: {value}" for name, value in said.items()] == kept["composition"]
    changed: list[tuple[str, Any]] = [("fingerprints.base", "another"), ("composition.denominator", "all")]
    changed += [("composition.negatives", "the rule of another version"), ("priorities.params.threshold", 0.5)]
    for field, then in changed:
        seal.write_text(json.dumps({**held, "identity": {**held["identity"], field: then}}), encoding="utf-8")
        now = re.escape(json.dumps(held["identity"][field]))
        with pytest.raises(ConfigError, match=f"^--resume: {field}: was {json.dumps(then)} at checkpoint-2, is {now};"):
            run(load_config(config), resume=True)


def test_a_change_that_is_allowed_is_told_and_saved(write: Write, part: Path, caplog: Any) -> None:
    config = load_config(write("part", priorities=DFT, training={**TRAINING, "seed": 6}))
    with pytest.raises(ConfigError, match="--allow-changes: goes with --resume"):
        run(config, allow_changes=True)
    run(config, resume=True, allow_changes=True)
    assert "--allow-changes: training.seed: was 5 at checkpoint-2, is 6" in caplog.text
    found, _ = last_whole(part)
    assert found is not None
    assert (found.step, found.held.identity["training.seed"]) == (4, 6)


def test_what_is_left_to_its_default_is_saved_too(begun: Path) -> None:
    found, _ = last_whole(begun)
    assert found is not None
    said = {"training.seed": 5, "training.max_steps": 4, "training.world_size": 1, "model.dtype": "float32"}
    assert {name: found.held.identity[name] for name in said} == said
