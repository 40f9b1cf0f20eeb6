"""Fingerprints: the same for the same numbers, in every process; another for anything that moves one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenpriority_service.engines.byte_tokenizer import byte_tokenizer
from tokenpriority_service.engines.fingerprint import model_fingerprint, tokenizer_fingerprint
from tokenpriority_service.engines.torch import TorchEngine

HEX = 32


@pytest.fixture
def folder(lab: Any, tmp_path: Path) -> Path:
    """A model with the byte tokenizer beside it."""
    lab.build("llama", vocab_size=512).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fingerprint(path: Path, **settings: Any) -> str:
    return TorchEngine(str(path), **settings).info.fingerprint


def test_the_same_folder_in_another_process_and_place(folder: Path, tmp_path: Path) -> None:
    here = fingerprint(folder)
    assert len(here) == HEX
    assert int(here, 16)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    program = (
        "import sys\nfrom tokenpriority_service.engines import load_engine\n"
        "print(load_engine('torch', model=sys.argv[1]).info.fingerprint)"
    )
    there = subprocess.run(
        [sys.executable, "-c", program, str(elsewhere)], check=True, capture_output=True, text=True, timeout=120
    )
    assert there.stdout.strip() == here


def test_how_it_is_run_does_not_matter(folder: Path) -> None:
    other = fingerprint(folder, max_model_len=20, max_batch_tokens=100, logits_bytes=1 << 20, threads=1)
    assert other == fingerprint(folder)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_one_weight_moves_it(lab: Any, name: str) -> None:
    model = lab.build("llama")
    before = model_fingerprint(model, None, {})
    weight = model.get_parameter(name)
    weight.data.view(-1)[5] += 1e-3
    assert model_fingerprint(model, None, {}) != before
    weight.data.view(-1)[5] -= 1e-3


def test_weights_that_change_places_move_it(lab: Any) -> None:
    model = lab.build("llama")
    before = model_fingerprint(model, None, {})
    one, other = model.model.layers
    one.mlp.up_proj.weight, other.mlp.up_proj.weight = other.mlp.up_proj.weight, one.mlp.up_proj.weight
    assert model_fingerprint(model, None, {}) != before


def test_dtype_config_numerics_and_template_move_it(folder: Path) -> None:
    seen = {fingerprint(folder), fingerprint(folder, dtype="bfloat16")}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    seen.add(fingerprint(folder))
    torch.set_float32_matmul_precision("high")
    try:
        seen.add(fingerprint(folder))
    finally:
        torch.set_float32_matmul_precision("highest")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    seen.add(fingerprint(folder))
    assert len(seen) == 5


def test_where_a_config_came_from_does_not_matter(lab: Any) -> None:
    model = lab.build("llama")
    before = model_fingerprint(model, None, {})
    model.config._name_or_path = "somewhere/else"
    model.config.transformers_version = "4.0.0"
    assert model_fingerprint(model, None, {}) == before
    assert model_fingerprint(model, None, {"torch": "1"}) != before


def test_using_a_tokenizer_does_not_change_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before
    assert len(before) == HEX


def test_vocabulary_special_tokens_and_template_are_in_it() -> None:
    changed = [byte_tokenizer() for _ in range(4)]
    changed[1].add_tokens(["padding"])
    changed[2].eos_token = "<|im_end|>"
    changed[3].chat_template = "x"
    assert len({tokenizer_fingerprint(each) for each in changed}) == 4
    assert tokenizer_fingerprint(byte_tokenizer()) == tokenizer_fingerprint(changed[0])


def test_no_tokenizer_has_an_empty_one(lab: Any) -> None:
    engine = TorchEngine(str(lab.saved("qwen3")))
    assert engine.tokenizer is None
    assert tokenizer_fingerprint(engine.tokenizer) == ""
