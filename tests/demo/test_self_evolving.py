"""The self-evolving recipe, run: real servers, real trainings, on a miniature of the demo's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tokenpriority import Calibration
from tokenpriority_trainer.config import Config
from tokenpriority_trainer.demo import models
from tokenpriority_trainer.demo.corpus import Ids
from tokenpriority_trainer.demo.processes import Children
from tokenpriority_trainer.demo.scale import Scale
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.recipes.self_evolving import self_evolve

EXAMPLES, SUBSETS = 24, 3


def config(folder: Path, **priorities: Any) -> Config:
    training = {
        "output_dir": str(folder / "out"),
        "max_steps": 3,
        "max_length": 48,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    data = {"train": str(folder / "data.jsonl")}
    model = {"path": str(folder / "base")}
    return Config.model_validate({"model": model, "data": data, "priorities": priorities, "training": training})


@pytest.mark.slow
def test_each_round_is_cleaned_by_the_model_before(
    tmp_path: Path, tiny: Scale, tokenizer: PreTrainedTokenizerFast, rows: Ids
) -> None:
    models.save(models.new_model(tiny, tokenizer, seed=0), tokenizer, tmp_path / "base")
    lines = [json.dumps({"input_ids": ids.tolist()}) for ids in rows[:EXAMPLES]]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    with Children(tmp_path / "logs", {}) as children:
        made = self_evolve(config(tmp_path), children, subsets=SUBSETS, keep=0.5)
    assert [folder.name for folder in made] == ["round-0", "round-1", "round-2"]
    fingerprints = set()
    for number, folder in enumerate(made):
        assert json.loads((folder / "summary.json").read_text())["complete"]
        if number:
            calibration = Calibration.load(folder / "calibration.json")
            tokens = EXAMPLES // SUBSETS * (tiny.length - 1)
            assert (calibration.tokens, calibration.method) == (tokens, "token_cleaning")
            assert calibration.kept >= tokens // 2
            curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            assert np.mean([point["kept_share"] for point in curve]) == pytest.approx(0.5, abs=0.15)
            priority = json.loads((folder / "summary.json").read_text())["composition"][0]
            assert priority.endswith(f"calibrated by {folder / 'calibration.json'}")
            assert str(made[number - 1]) in (folder / "server.toml").read_text()
            fingerprints.add(calibration.fingerprints["base"])
    assert len(fingerprints) == 1, "the base of the score never changes"


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n' * 3)
    with Children(tmp_path / "logs", {}) as children:
        with pytest.raises(ConfigError, match="subsets: must be from 2 to the 3 examples, got 5"):
            self_evolve(config(tmp_path), children)
        with pytest.raises(ConfigError, match=r"priorities.url"):
            self_evolve(config(tmp_path, url="http://127.0.0.1:1"), children)
