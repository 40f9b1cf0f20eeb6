from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tokenpriority.errors import Unavailable
from tokenpriority_trainer.demo import models
from tokenpriority_trainer.demo.processes import ChildFailed, Children
from tokenpriority_trainer.demo.scale import Scale
from tokenpriority_trainer.demo.server import Server


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with Children(tmp_path / "logs", {}) as children:
        server = Server(children, {"reference": tmp_path / "nothing"}, tmp_path / "server.toml")
        with pytest.raises(ChildFailed, match=r"server ended with exit status 2(.|\n)*no such folder"):
            server.wait_until_ready()


def test_a_model_that_cannot_be_loaded_is_told_at_once(
    tiny: Scale, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    models.save(models.new_model(tiny, tokenizer, seed=0), tokenizer, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"these are no weights")
    with Children(tmp_path / "logs", {}) as children:
        server = Server(children, {"reference": tmp_path / "model"}, tmp_path / "server.toml")
        with pytest.raises(Unavailable, match="reference"):
            server.wait_until_ready()
