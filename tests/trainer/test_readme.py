"""The README's configuration is one, and its script runs."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from trl import SFTConfig

from tokenpriority_trainer.config import Config

README = Path(__file__).parents[2] / "trainer" / "README.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_configuration_has_every_key_there_is() -> None:
    config = Config.model_validate(tomllib.loads(block("toml")))
    instead = set(re.findall(r"^# (\w+) =", block("toml"), re.MULTILINE))
    for section in (config.model, config.data, config.priorities, config.guard):
        assert set(type(section).model_fields) - instead == section.model_fields_set
    assert instead == {"calibration"}, "which method and params exclude"
    assert set(config.training) <= {field.name for field in fields(SFTConfig)}


def test_the_script_trains(
    server: str, save_student: Callable[..., Path], text: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    save_student(tmp_path / "path" / "to" / "student")
    rows = [json.dumps({"text": text[50 * i : 50 * i + 100]}) for i in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    script = block("python").replace("http://127.0.0.1:8000", server).replace("bf16=False", "bf16=False, **CPU")
    cpu = {"use_cpu": True, "report_to": "none", "dataloader_pin_memory": False, "disable_tqdm": True}
    names: dict[str, Any] = {"CPU": cpu}
    exec(script, names)
    assert names["trainer"].state.global_step == 3


def test_every_file_is_in_the_tree() -> None:
    named = set(re.findall(r"── (\w+\.py)", README.read_text(encoding="utf-8")))
    files = {path.name for path in (README.parent / "tokenpriority_trainer").glob("*.py")}
    assert named == files - {"__init__.py", "__main__.py"}
