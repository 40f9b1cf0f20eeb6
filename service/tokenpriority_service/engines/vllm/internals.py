"""Every vLLM internal this package touches: its upstream name, why we need it, what breaks if it moves.

Read against vLLM 0.26 to 0.33, run on 0.32. What is imported here at once is vLLM's documented API; what a function
imports is not. Nothing else in the package imports vLLM; where another file uses an attribute of an object that vLLM
gave it, the file stands in brackets.

- `vllm.v1.engine.async_llm.AsyncLLM` [core, fast_path, prompt_logprobs, adapters]: `from_engine_args`, `encode`,
  `generate`, `errored`, `model_config`, `vllm_config`, `add_lora`, `shutdown(timeout)`; `outputs.data` of what `encode`
  yields; `vllm.inputs.engine.TokensInput` with its `cache_salt`. Runs the engine core. Without it: no engine.
- `VllmConfig` [models, fast_path, identity, adapters]: `model_config.runner_type`, `.max_model_len`,
  `.get_vocab_size()`, `cache_config.block_size`, `parallel_config.tensor_parallel_size`, `additional_config`. What a
  worker is told and the self-check asks. Without: no fast path.
- `VllmModelForPooling.is_pooling_model`, `.pooler` [models]; `hf_overrides["head_dtype"]` [fast_path]. How vLLM knows a
  model that pools, and that its head keeps the model's type. Without: no fast path, or a head of another type.
- `vllm.v1.engine.exceptions.EngineDeadError`. Tells a dead core from a bad request. Without it: no restart.
- `ModelRegistry.models`, `_BaseRegisteredModel.load_model_cls`. The class a scoring model is made from. Without: no
  fast path.
- `vllm.model_executor.layers.pooler.Pooler` [pooler]: `forward`, `get_supported_tasks`, `get_pooling_updates`;
  `PoolingParamsUpdate`. The pooler's interface. Without: no fast path.
- `PoolingMetadata.get_pooling_cursor()`, `.prompt_token_ids_cpu`, `.pooling_params[i].extra_kwargs`,
  `.pooling_states[i].hidden_states_cache`. Which rows a step holds, what is wanted of them, what is kept between steps.
  Without: no fast path.
- `LogitsProcessor._gather_logits`, `VocabParallelEmbedding.shard_indices`, `get_tp_group().all_gather`. Logits of the
  local shard and what the shards tell each other. Without: no tensor parallelism.
- `KVCacheManager.get_computed_blocks`, `Request.num_tokens`, `PoolingParams.skip_reading_prefix_cache`. Bounds what a
  request takes from the prefix cache. Without: prefixes are computed again, or rows are missing (the self-check and the
  shape check of every answer notice).
- `FlatLogprobs.start_indices`, `.end_indices`, `.token_ids`, `.logprobs`, `.ranks`. Without: no fallback.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm import ModelRegistry, PoolingParams, SamplingParams
from vllm.distributed import get_tp_group
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.pooler import Pooler, PoolingParamsUpdate
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.version import __version__

from tokenpriority_service.engines.vllm.wish import KEY, Wish

__all__ = [
    "AsyncEngineArgs",
    "AsyncLLM",
    "EngineDeadError",
    "LoRARequest",
    "Pooler",
    "PoolingParams",
    "PoolingParamsUpdate",
    "RequestOutputKind",
    "SamplingParams",
    "__version__",
]

TASK = "token_classify"
"""The pooling task that returns one tensor per prompt, of any shape."""


def causal_architectures() -> list[str]:
    """Every architecture vLLM registers that ends in ForCausalLM."""
    return [name for name in ModelRegistry.get_supported_archs() if name.endswith("ForCausalLM")]


def registered(architecture: str) -> Any:
    """How vLLM has it registered; its `load_model_cls()` gives the class."""
    return ModelRegistry.models[architecture]


def register(architecture: str, place: str) -> None:
    """Replace it by the class at `place`, "module:name", imported when it is used."""
    ModelRegistry.register_model(architecture, place)


def is_cpu() -> bool:
    """Whether this vLLM was built for the CPU."""
    return bool(current_platform.is_cpu())


def device_name() -> str:
    """What the workers run on: "cpu", or the GPU's name."""
    return str(current_platform.device_type if is_cpu() else current_platform.get_device_name())


@dataclass(frozen=True, slots=True)
class Part:
    """What one step holds of one request.

    Rows `first` to `first + count` of the step's hidden states are its positions `start` to `start + count`.
    """

    first: int
    start: int
    count: int
    token_ids: Tensor
    """[T] int on the CPU: the whole prompt; shorter in vLLM's own dry run."""
    length: int
    """T."""
    wish: Wish
    kept: list[Tensor]
    """Ours to keep from step to step; vLLM drops it with the request."""

    @property
    def last(self) -> bool:
        """Whether the prompt ends with this step."""
        return self.start + self.count == self.length


def parts(metadata: Any) -> list[Part]:
    """The requests of one step, from its PoolingMetadata."""
    cursor = metadata.get_pooling_cursor()
    counts = cursor.num_scheduled_tokens_cpu.tolist()
    ends = cursor.seq_lens_cpu.tolist()
    lengths = cursor.prompt_lens_cpu.tolist()
    found, first = [], 0
    for index, (count, end, length) in enumerate(zip(counts, ends, lengths, strict=True)):
        ids = metadata.prompt_token_ids_cpu[index, :length]
        wish = Wish.unpack(metadata.pooling_params[index].extra_kwargs)
        kept = metadata.pooling_states[index].hidden_states_cache
        found.append(Part(first, end - count, count, ids, length, wish, kept))
        first += count
    return found


def tensor_parallel() -> int:
    """Processes the vocabulary is split over."""
    return int(get_tp_group().world_size)


def gather(rows: Tensor) -> Tensor:
    """From [n, k] of this process to [processes, n, k] of the tensor-parallel group, in every process."""
    together: Tensor = get_tp_group().all_gather(rows.contiguous(), dim=0)
    return together.view(-1, *rows.shape)


class LocalLogits:
    """The logits of the local shard of a model's vocabulary: its own `compute_logits`, less the gathering."""

    def __init__(self, model: Any) -> None:
        if tensor_parallel() > 1 and not hasattr(model, "logits_processor"):
            raise ValueError(f"tensor_parallel: {type(model).__name__} has no logits_processor to split; use 1")
        self._compute = model.compute_logits
        self._processor: Any = getattr(model, "logits_processor", None)
        self._shard: Any = None

    def whole(self, hidden: Tensor) -> Tensor:
        """[n, V] of the whole vocabulary, in every process, as the model computes it."""
        logits: Tensor = self._compute(hidden)
        return logits

    def local(self, hidden: Tensor) -> tuple[Tensor, int]:
        """[n, v] of the local shard, padding at -inf, and the id of its first token."""
        if tensor_parallel() == 1:
            return self.whole(hidden), 0
        with self._ungathered():
            logits = self.whole(hidden)
        padding = self._shard.num_org_vocab_padding
        if padding:
            logits[:, -padding:] = -torch.inf
        return logits, int(self._shard.org_vocab_start_index)

    @contextlib.contextmanager
    def _ungathered(self) -> Iterator[None]:
        def pre_hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            self._shard = inputs[0].shard_indices

        hook = self._processor.register_forward_pre_hook(pre_hook)
        gathering, self._processor._gather_logits = self._processor._gather_logits, lambda logits: logits
        try:
            yield
        finally:
            self._processor._gather_logits = gathering
            hook.remove()


def bound_prefix_hits() -> None:
    """Let a scored request read the prefix cache, but never beyond the last row it needs.

    vLLM lets token-wise pooling read no cached prefix at all, since a skipped token has no row. The rows of a request
    scored from `score_from` begin at `score_from - 1`; what stands before may be skipped.
    """
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    unbounded = KVCacheManager.get_computed_blocks
    if hasattr(unbounded, KEY):
        return  # plugins may be loaded more than once

    @functools.wraps(unbounded)
    def get_computed_blocks(self: Any, request: Any) -> Any:
        params = request.pooling_params
        if params is not None and KEY in (params.extra_kwargs or {}):
            request = _Shortened(request, Wish.unpack(params.extra_kwargs).score_from)
        return unbounded(self, request)

    setattr(get_computed_blocks, KEY, True)
    KVCacheManager.get_computed_blocks = get_computed_blocks


class _Shortened:
    """A request that seems `length` tokens long; vLLM never takes the last token from the cache."""

    def __init__(self, request: Any, length: int) -> None:
        self._request = request
        self.num_tokens = min(length, request.num_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def prompt(ids: Sequence[int], salt: str = "") -> dict[str, Any]:
    """A prompt as AsyncLLM takes it without rendering: ids that are known to be sound. `salt` goes into the hash of its
    first block in the prefix cache and so into all that follow: beginnings are shared within a salt only.
    """
    return {"type": "token", "prompt_token_ids": list(ids), **({"cache_salt": salt} if salt else {})}


def prompt_logprobs(output: Any, ids: Sequence[int]) -> Tensor:
    """[2, T - 1] float32, logprob and rank of tokens 1 to T - 1, from a RequestOutput asked with
    `prompt_logprobs=0, flat_logprobs=True`.

    Raises ValueError where vLLM left an entry out (after preemption) or speaks of other tokens (vllm #44106).
    """
    flat = output.prompt_logprobs
    if flat is None or len(flat) != len(ids):
        raise ValueError(f"vLLM gave prompt logprobs of {0 if flat is None else len(flat)} of {len(ids)} tokens")
    starts, ends = flat.start_indices[1:], flat.end_indices[1:]
    if any(end - start < 1 for start, end in zip(starts, ends, strict=True)):
        raise ValueError("vLLM left out the prompt logprob of a token")
    if [flat.token_ids[start] for start in starts] != list(ids[1:]):
        raise ValueError("vLLM gave the prompt logprobs of other tokens")
    return torch.tensor([[flat.logprobs[i] for i in starts], [flat.ranks[i] for i in starts]], dtype=torch.float32)
