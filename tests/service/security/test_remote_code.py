"""A checkpoint that brings code: refused when it is loaded, by every way there is, and none of the code runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenpriority_service.configuration.settings import Settings, TorchModel
from tokenpriority_service.engines.checkpoint import load_tokenizer
from tokenpriority_service.engines.torch import TorchEngine

CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
import transformers
# Classes of its own: transformers marks those it has loaded as code, for good.
class Config(transformers.LlamaConfig): pass
class Model(transformers.LlamaForCausalLM): pass
class Tokenizer(transformers.PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def hostile(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A folder whose auto_map names classes of its own code, for a kind of model transformers does not know."""
    folder = tmp_path / "hostile"
    shutil.copytree(checkpoints["reference"], folder)
    (folder / "code.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "hostile", "architectures": ["HostileForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {
        "tokenizer_class": "HostileTokenizer",
        "auto_map": {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


def test_the_code_would_run_if_it_were_trusted(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the other tests prove nothing."""
    from transformers import AutoConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(hostile.parent / "modules"))
    config: Any = AutoConfig
    config.from_pretrained(hostile, trust_remote_code=True)
    assert (hostile.parent / "mark").exists()


@pytest.mark.parametrize("load", [TorchEngine, load_tokenizer], ids=["engine", "tokenizer"])
def test_loading_is_refused(hostile: Path, load: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"trust_remote_code|model_type"):
        load(str(hostile))
    assert not (hostile.parent / "mark").exists()


def test_a_server_says_so_and_serves_its_other_models(
    serve: Any, hostile: Path, probe: Any, wait_until: Callable[..., None]
) -> None:
    settings = Settings(models={"hostile": TorchModel(model=str(hostile), threads=1)})
    with serve({"reference": probe}, settings, ready=False) as server:
        wait_until(lambda: "reference" not in server.service.models.unready, "reference")
        wait_until(lambda: server.service.models.unready.get("hostile") != "loading", "the refusal")
        assert server.post({"sequences": [{"token_ids": [1]}], "model": "hostile"}).status_code == 503
        assert server.score({"token_ids": [1, 2]})[0]["priorities"] == [0, 1]
    assert not (hostile.parent / "mark").exists()
