"""What a vLLM model says of itself: EngineInfo and fingerprint.

Knows everything that moves a number: weights, config, tokenizer, dtype, versions, path, device. Two engines on the same
files with the same settings have one fingerprint, in every process and after every restart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tokenpriority_service.engines import statistics
from tokenpriority_service.engines.checkpoint import checkpoint_files, digest_files
from tokenpriority_service.engines.engine import EngineInfo
from tokenpriority_service.engines.fingerprint import files_fingerprint
from tokenpriority_service.engines.vllm import internals
from tokenpriority_service.engines.vllm.fast_path import FastPath
from tokenpriority_service.engines.vllm.prompt_logprobs import PromptLogprobs


@dataclass(frozen=True, slots=True)
class Identity:
    """The settings that are part of who a model is."""

    model: str
    revision: str | None
    dtype: str
    path: FastPath | PromptLogprobs
    tensor_parallel: int

    def base(self, config: Any, tokenizer: Any | None) -> EngineInfo:
        """Of the base model; `config` is the running core's."""
        return EngineInfo(
            engine="vllm",
            model=self.model,
            dtype=self.dtype,
            max_model_len=self.path.longest(config.model_config.max_model_len),
            vocab_size=config.model_config.get_vocab_size(),
            fingerprint=files_fingerprint(
                digest_files(checkpoint_files(self.model, self.revision)), tokenizer, self._numerics()
            ),
            signals=self.path.signals,
        )

    def adapter(self, base: EngineInfo, folder: str) -> EngineInfo:
        """Of a LoRA adapter in `folder` on the base."""
        files = digest_files(checkpoint_files(folder))
        fingerprint = files_fingerprint(files, None, {"base": base.fingerprint})
        return replace(base, model=f"{base.model} + {folder}", fingerprint=fingerprint)

    def _numerics(self) -> dict[str, str]:
        return {
            "engine": f"vllm {internals.__version__}",
            "revision": self.revision or "",
            "evidence": self.path.name,
            "statistics": str(statistics.VERSION),
            "dtype": self.dtype,
            "head_dtype": self.dtype,
            "device": internals.device_name(),
            "tensor_parallel": str(self.tensor_parallel),
        }
