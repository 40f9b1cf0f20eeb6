"""The vLLM engine: any causal LM vLLM runs, scored by its workers, with adapters as further models.

Knows the settings and what vLLM is told of them. Leaves processes to `core`, jobs to `scored`, and how evidence is had
to `fast_path` or `prompt_logprobs`. vLLM's port is never opened and remote code is never run.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenpriority_service.engines.checkpoint import checkpoint_files, load_tokenizer
from tokenpriority_service.engines.engine import DTYPES, Engine
from tokenpriority_service.engines.vllm import internals, parent
from tokenpriority_service.engines.vllm.adapters import Adapters
from tokenpriority_service.engines.vllm.core import Core
from tokenpriority_service.engines.vllm.fast_path import FastPath
from tokenpriority_service.engines.vllm.identity import Identity
from tokenpriority_service.engines.vllm.prompt_logprobs import PromptLogprobs
from tokenpriority_service.engines.vllm.scored import ScoredModel

EVIDENCE = ("full", "prompt_logprobs")

_CPU_KV_BYTES = 1 << 30

_FIXED = {
    "enable_chunked_prefill": True,
    "scheduling_policy": "priority",
    "skip_tokenizer_init": True,
    "disable_log_stats": True,
    "generation_config": "vllm",  # a checkpoint's sampling defaults have no say here
    "trust_remote_code": False,
}


class VllmEngine(ScoredModel):
    """Scores with vLLM; starts its engine core at once and runs it until `close`.

    `model` is a folder or a hub name, at `revision`. `evidence` is "full" (every signal, by our pooler in vLLM's
    workers) or "prompt_logprobs" (logprob and rank, for models the pooling runner cannot host). `max_model_len` is at
    most, and by default, what the config states; `max_batch_tokens` the tokens of one step (a longer prompt is cut into
    several), `max_sequences` the prompts of one step, `logits_bytes` the float32 logits alive in one worker.
    `tensor_parallel` splits the model over so many devices. On GPUs `memory_share` is the share of each one's memory
    this model may take (default vLLM's, which leaves no room for a second model); `kv_cache_bytes` fixes the key-value
    cache instead (on a CPU, where it is 1 GiB if not given). `prefix_caching` keeps the computed beginnings of prompts
    for others that share them. `threads` are those of each worker on a CPU. `adapters` maps a name to the folder of a
    LoRA adapter.

    The model is loaded in `dtype`, its logits are computed in it, and the evidence from them in float32. A position
    depends on what it was batched with only by rounding (tests/benchmarks/RESULTS.md; in float32 below 1e-6 nats).

    Raises ValueError, naming the field, if the model cannot be loaded as asked or fails the self-check (`check`).
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "float32",
        evidence: str = "full",
        max_model_len: int | None = None,
        max_batch_tokens: int = 8192,
        max_sequences: int = 256,
        logits_bytes: int = 1 << 28,
        tensor_parallel: int = 1,
        memory_share: float | None = None,
        kv_cache_bytes: int | None = None,
        prefix_caching: bool = True,
        threads: int | None = None,
        adapters: Mapping[str, str] = MappingProxyType({}),
        revision: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        if evidence not in EVIDENCE:
            raise ValueError(f"evidence: expected one of {', '.join(EVIDENCE)}, got {evidence!r}")
        if Path(model).expanduser().is_dir():
            checkpoint_files(model)  # without weights, refused at once
        path = FastPath(dtype=dtype, logits_bytes=logits_bytes) if evidence == "full" else PromptLogprobs()
        known = Adapters(adapters)
        arguments: dict[str, Any] = {
            "model": model,
            "revision": revision,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_batched_tokens": max_batch_tokens,
            "max_num_seqs": min(max_sequences, max_batch_tokens),  # vLLM wants no more
            "tensor_parallel_size": tensor_parallel,
            "enable_prefix_caching": prefix_caching,
            **_FIXED,
            **_memory(memory_share, kv_cache_bytes),
            **path.arguments,
            **known.arguments,
        }

        identity = Identity(model, revision, dtype, path, tensor_parallel, adapters)

        async def check(llm: Any) -> None:
            await asyncio.to_thread(identity.read)
            await known.load(llm)
            await path.check(llm, known.base)
            await known.check(llm, path, dtype)

        core = Core(arguments, {**path.environment, **_environment(threads)}, check, name=model)
        try:
            core.start()
            tokenizer = load_tokenizer(model, revision)
            info = identity.base(core.config, tokenizer)
            super().__init__(core, path, info, tokenizer, known.base)
            self._adapters = {
                name: ScoredModel(core, path, identity.adapter(info, adapters[name]), tokenizer, request)
                for name, request in known.requests.items()
            }
            self._known = known
        except BaseException:
            core.stop()
            known.close()
            raise

    @property
    def adapters(self) -> Mapping[str, Engine]:
        """The LoRA adapters on this model, by name; closed with it."""
        return self._adapters

    async def close(self) -> None:
        """Stop vLLM's processes; idempotent."""
        await asyncio.to_thread(self._core.stop)
        self._known.close()


def _memory(memory_share: float | None, kv_cache_bytes: int | None) -> dict[str, Any]:
    if internals.is_cpu():
        # Compiling pays where sequences are generated; a start takes seconds instead of a minute.
        return {"kv_cache_memory_bytes": kv_cache_bytes or _CPU_KV_BYTES, "enforce_eager": True}
    given = {"gpu_memory_utilization": memory_share, "kv_cache_memory_bytes": kv_cache_bytes}
    return {name: value for name, value in given.items() if value is not None}


def _environment(threads: int | None) -> dict[str, str | None]:
    found: dict[str, str | None] = {parent.VARIABLE: str(os.getpid())}
    if internals.is_cpu():
        found["VLLM_CPU_KVCACHE_SPACE"] = None  # it would silently take the place of kv_cache_bytes
        found["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # vLLM would bind its threads to cores that others use too
        if threads is not None:
            found["OMP_NUM_THREADS"] = str(threads)
    return found
