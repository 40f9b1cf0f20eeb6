"""How models are loaded, and when the torch engine refuses one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenpriority.evidence import OPTIONAL_SIGNALS, SIGNALS
from tokenpriority_service.engines import Job, load_engine
from tokenpriority_service.engines.scorer import Scorer
from tokenpriority_service.engines.torch import TorchEngine

Open = Callable[..., TorchEngine]


def test_info_describes_the_model(lab: Any, open_engine: Open) -> None:
    info = open_engine("qwen3").info
    assert (info.engine, info.model, info.dtype) == ("torch", str(lab.saved("qwen3")), "float32")
    assert (info.max_model_len, info.vocab_size) == (lab.max_len, lab.vocab_size)
    assert info.signals == SIGNALS + OPTIONAL_SIGNALS
    assert open_engine("qwen3", max_model_len=10).info.max_model_len == 10


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"device": "tpu"}, "device: expected one of cpu, cuda, got 'tpu'"),
        ({"max_model_len": 41}, "max_model_len: expected 2 to 40 tokens, got 41"),
        ({"max_model_len": 1}, "max_model_len: expected 2 to 40 tokens, got 1"),
        ({"max_batch_tokens": 0}, "max_batch_tokens: expected at least 1, got 0"),
        ({"logits_bytes": 10}, "logits_bytes: one row of 97 logits takes 388 bytes, got 10"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(lab: Any, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_engine("torch", model=str(lab.saved("llama")), **settings)


def test_each_engine_computes_with_its_own_threads(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that says nothing, whose thread would take over what the last one set."""
    seen: list[int] = []
    score = Scorer.score

    def watched(scorer: Scorer, jobs: Any) -> Any:
        seen.append(torch.get_num_threads())
        return score(scorer, jobs)

    monkeypatch.setattr(Scorer, "score", watched)
    by_itself, asked = torch.get_num_threads(), (3, None, 2)
    engines = [TorchEngine(str(lab.saved("llama")), threads=threads) for threads in asked]
    for engine in [*engines, *engines]:
        lab.score(engine, [Job(np.arange(5, dtype=np.uint32))])
    for engine in engines:
        asyncio.run(engine.close())
    assert seen == [3, by_itself, 2] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_without_a_device_is_refused(lab: Any) -> None:
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        TorchEngine(str(lab.saved("llama")), device="cuda")


def test_a_model_that_states_no_length_needs_one(lab: Any, open_engine: Open, tmp_path: Path) -> None:
    fields = {**lab.kinds["mamba"], "max_position_embeddings": None}
    lab.build("mamba", **fields).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="max_model_len: the model's config states no length"):
        TorchEngine(str(tmp_path))
    with pytest.raises(ValueError, match="max_model_len: expected at least 2 tokens, got 1"):
        TorchEngine(str(tmp_path), max_model_len=1)
    assert open_engine(tmp_path, max_model_len=30).info.max_model_len == 30


def test_missing_weights_are_refused(lab: Any, tmp_path: Path) -> None:
    """transformers would fill them at random and go on."""
    folder = shutil.copytree(lab.saved("llama"), tmp_path / "holed")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of LlamaForCausalLM, .*layers\.1\.mlp\.up_proj"):
        TorchEngine(str(folder))
