"""LoRA adapters as vLLM is to be told of them.

Knows adapter folders, which of them can be scored, and how they are checked. Knows nothing of engines.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tokenpriority_service.engines.contract import probe_ids
from tokenpriority_service.engines.vllm import check, internals
from tokenpriority_service.engines.vllm.fast_path import FastPath
from tokenpriority_service.engines.vllm.prompt_logprobs import PromptLogprobs
from tokenpriority_service.engines.vllm.wish import Wish

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM's `max_lora_rank` can take."""

_WEIGHTS = "adapter_model.safetensors"

_OUTSIDE = ("lm_head", "embed_tokens")
"""Modules an adapter may not change: vLLM applies its lm_head adapters to sampled rows only, not to all of a prompt."""


class Adapters:
    """The adapters of one core, name -> folder.

    Raises ValueError, naming the adapter, if one is no LoRA adapter or changes the head or the embeddings.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        paths = {name: Path(folder).expanduser() for name, folder in folders.items()}
        self.arguments = _arguments([_config(name, path) for name, path in paths.items()])
        """AsyncEngineArgs; none without adapters."""
        self.requests = {name: _request(number, name, path) for number, (name, path) in enumerate(paths.items(), 1)}
        """What vLLM is asked with for each."""
        self.base: Any = None
        """What vLLM is asked with for the base model."""
        self._nothing: tempfile.TemporaryDirectory[str] | None = None
        if paths and internals.is_cpu():
            # vLLM's CPU kernels give rows without an adapter the last one's, so the base gets one that adds nothing.
            self._nothing = tempfile.TemporaryDirectory(prefix="tokenpriority-")
            _write_nothing(next(iter(paths.values())), Path(self._nothing.name))
            self.base = _request(len(paths) + 1, "nothing", Path(self._nothing.name))
            self.arguments["max_loras"] += 1

    async def load(self, llm: Any) -> None:
        """Have them loaded, so that a folder vLLM cannot take is known at start."""
        for request in [*self.requests.values(), self.base]:
            if request is not None:
                await llm.add_lora(request)

    def close(self) -> None:
        """Remove what was written for vLLM to load."""
        if self._nothing is not None:
            self._nothing.cleanup()

    async def check(self, llm: Any, path: FastPath | PromptLogprobs, dtype: str) -> None:
        """Raise ValueError if a probe scored under every model at once differs from one scored under each alone."""
        ids = probe_ids(min(48, path.longest(llm.model_config.max_model_len)), llm.model_config.get_vocab_size())
        requests = [self.base, *self.requests.values()] if self.requests else []
        alone = [await path.rows(llm, ids, Wish(), f"alone-{n}", lora) for n, lora in enumerate(requests)]
        together = await asyncio.gather(
            *(path.rows(llm, ids, Wish(), f"together-{n}", lora) for n, lora in enumerate(requests))
        )
        for first, second in zip(alone, together, strict=True):
            check.compare_runs(first[0], second[0], dtype, "logprobs of models scored alone and together")


def _arguments(configs: list[dict[str, Any]]) -> dict[str, Any]:
    if not configs:
        return {}
    modules = {module.rsplit(".", 1)[-1] for config in configs for module in config["target_modules"]}
    rank = max(map(_rank, configs))
    return {
        "enable_lora": True,
        "max_loras": len(configs),
        "max_lora_rank": min(each for each in _RANKS if each >= rank),
        # Named, so that vLLM does not wrap lm_head as well.
        "lora_target_modules": sorted(modules),
    }


def _request(number: int, name: str, folder: Path) -> Any:
    return internals.LoRARequest(name, number, str(folder))


def _config(name: str, folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ValueError(f"adapters.{name}: no adapter_config.json in {folder}")
    config: dict[str, Any] = json.loads(file.read_text())
    if config.get("peft_type") != "LORA" or not isinstance(config.get("target_modules"), list):
        raise ValueError(f"adapters.{name}: expected a LoRA adapter with a list of target_modules")
    saved = config.get("modules_to_save") or []
    outside = [module for module in config["target_modules"] if module.rsplit(".", 1)[-1] in _OUTSIDE]
    if outside or saved:
        raise ValueError(f"adapters.{name}: {', '.join([*outside, *saved])} cannot be adapted where prompts are scored")
    if not 1 <= _rank(config) <= _RANKS[-1]:
        raise ValueError(f"adapters.{name}: expected a rank r of 1 to {_RANKS[-1]}, got {_rank(config)}")
    if not (folder / _WEIGHTS).is_file():
        raise ValueError(f"adapters.{name}: no {_WEIGHTS} in {folder}")
    return config


def _rank(config: dict[str, Any]) -> int:
    return max(int(config.get("r", 0)), *map(int, (config.get("rank_pattern") or {0: 0}).values()))


def _write_nothing(like: Path, folder: Path) -> None:
    """An adapter of the shape of another whose product is 0."""
    weights = load_file(like / _WEIGHTS)
    save_file({name: tensor.zero_() for name, tensor in weights.items()}, folder / _WEIGHTS)
    shutil.copy(like / "adapter_config.json", folder)
