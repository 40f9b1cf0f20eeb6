"""Evidence by the plugin: every signal, computed where the hidden states are.

Knows how a scoring model is asked and checked. Knows nothing of processes or of what happens to the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenpriority.evidence import ENGINE_SIGNALS
from tokenpriority_service.engines.chunks import chunk_rows
from tokenpriority_service.engines.contract import probe_ids
from tokenpriority_service.engines.engine import Ids, Rows
from tokenpriority_service.engines.vllm import check, internals
from tokenpriority_service.engines.vllm.plugin import SWITCH
from tokenpriority_service.engines.vllm.wish import KEY, Wish


class FastPath:
    """A pooling model made by `models`; `logits_bytes` bounds the logits alive in each worker."""

    name = "full"
    signals = ENGINE_SIGNALS
    environment: Mapping[str, str] = {SWITCH: "1"}

    def __init__(self, *, dtype: str, logits_bytes: int) -> None:
        self._dtype = dtype
        self._logits_bytes = logits_bytes
        self.arguments: dict[str, Any] = {
            "runner": "pooling",
            # vLLM would give a pooling model a float32 head: other numbers than the model's, and on a CPU a copy of
            # lm_head for every chunk.
            "hf_overrides": {"head_dtype": "model"},
            "additional_config": {KEY: {"logits_bytes": logits_bytes}},
        }

    def longest(self, max_model_len: int) -> int:
        """Tokens of the longest prompt that can be scored."""
        return max_model_len

    async def rows(
        self, llm: Any, ids: Ids, wish: Wish, request: str, lora: Any = None, salt: str = "", priority: int = 0
    ) -> Rows:
        """[S, T - score_from] float32 for ids (T,), see `Wish`."""
        params = internals.PoolingParams(task=internals.TASK, extra_kwargs=wish.pack(), skip_reading_prefix_cache=False)
        stream = llm.encode(internals.prompt(ids.tolist(), salt), params, request, lora_request=lora, priority=priority)
        found: Rows | None = None
        async for output in stream:
            found = output.outputs.data.numpy()
        if found is None:
            raise ValueError("vLLM ended the request without an answer")
        return found

    async def check(self, llm: Any, lora: Any = None) -> None:
        """Raise ValueError if a probe scored in the workers disagrees with plain log_softmax over the same logits, with
        itself scored from the middle (its beginning then comes from the prefix cache, if that is on), or does not
        change where a token changes.
        """
        config = llm.vllm_config
        vocab_size = config.model_config.get_vocab_size()
        # Refused here by name; in a worker it would end the core.
        chunk_rows(self._logits_bytes, -(-vocab_size // config.parallel_config.tensor_parallel_size), "cpu")
        # Longer than two blocks of the cache: only whole blocks are kept.
        length = min(2 * config.cache_config.block_size + 2, config.model_config.max_model_len)
        ids = probe_ids(length, vocab_size)
        checked = await self.rows(llm, ids, Wish(check=True), "check", lora)
        check.compare(checked)
        if not np.isfinite(checked).all():
            raise ValueError("the self-check failed: a signal of the probe is not finite")
        middle = length // 2 + 1
        again = await self.rows(llm, ids, Wish(score_from=middle), "check-again", lora)
        for row in range(check.ROWS):
            check.compare_runs(checked[row, middle - 1 :], again[row], self._dtype, "two runs of the same tokens")
        changed = check.variants(ids, vocab_size)
        rows = await asyncio.gather(
            *(self.rows(llm, each, Wish(), f"check-{position}", lora) for position, each in changed.items())
        )
        check.compare_variants(checked, dict(zip(changed, rows, strict=True)), self._dtype)
