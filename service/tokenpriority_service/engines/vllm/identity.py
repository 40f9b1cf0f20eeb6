"""What a vLLM model says of itself: EngineInfo and fingerprint.

Knows everything that moves a number: weights, config, tokenizer, dtype, versions, path, device. Two engines on the same
files with the same settings have one fingerprint, in every process and after every restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokenpriority_service.engines import statistics
from tokenpriority_service.engines.checkpoint import checkpoint_files, digest_files
from tokenpriority_service.engines.engine import EngineInfo
from tokenpriority_service.engines.fingerprint import files_fingerprint
from tokenpriority_service.engines.vllm import internals
from tokenpriority_service.engines.vllm.fast_path import FastPath
from tokenpriority_service.engines.vllm.prompt_logprobs import PromptLogprobs


@dataclass(slots=True)
class Identity:
    """The settings that are part of who a model is, and the files they were loaded from."""

    model: str
    revision: str | None
    dtype: str
    path: FastPath | PromptLogprobs
    tensor_parallel: int
    adapters: Mapping[str, str]
    _files: dict[str, dict[str, str]] = field(default_factory=dict)
    """Model or adapter folder -> its files' digests, as they were when it was first loaded."""

    def read(self) -> None:
        """Read the files a core has just loaded. Raises ValueError if they are not those of the first time."""
        for folder, revision in [(self.model, self.revision), *((path, None) for path in self.adapters.values())]:
            digests = digest_files(checkpoint_files(folder, revision))
            before = self._files.setdefault(folder, digests)
            if changed := sorted(name for name in {*before, *digests} if before.get(name) != digests.get(name)):
                raise ValueError(f"model: {changed[0]} in {folder} has changed since it was loaded; restart the server")

    def base(self, config: Any, tokenizer: Any | None) -> EngineInfo:
        """Of the base model; `config` is the running core's."""
        return EngineInfo(
            engine="vllm",
            model=self.model,
            dtype=self.dtype,
            max_model_len=self.path.longest(config.model_config.max_model_len),
            vocab_size=config.model_config.get_vocab_size(),
            fingerprint=files_fingerprint(self._files[self.model], tokenizer, self._numerics(config)),
            signals=self.path.signals,
            batches=True,
            urgent_first=True,
        )

    def adapter(self, base: EngineInfo, folder: str) -> EngineInfo:
        """Of a LoRA adapter in `folder` on the base."""
        fingerprint = files_fingerprint(self._files[folder], None, {"base": base.fingerprint})
        return replace(base, model=f"{base.model} + {folder}", fingerprint=fingerprint)

    def _numerics(self, config: Any) -> dict[str, str]:
        return {
            "engine": f"vllm {internals.__version__}",
            "revision": self.revision or "",
            "evidence": self.path.name,
            "statistics": str(statistics.VERSION),
            "dtype": self.dtype,
            "head_dtype": self.dtype,
            "device": internals.device_name(),
            "tensor_parallel": str(self.tensor_parallel),
            # Some rotary embeddings are chosen by it (longrope).
            "max_model_len": str(config.model_config.max_model_len),
        }
