"""Evidence by vLLM's own `prompt_logprobs`, for models the pooling runner cannot host: logprob and rank, no more.

Knows how vLLM is asked and what its answer may lack. Slower than the fast path, computes every position whatever
`score_from` is, and on the first model runner holds all logits of a prompt at once (vllm #5907).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenpriority_service.engines.contract import probe_ids
from tokenpriority_service.engines.engine import Ids, Rows
from tokenpriority_service.engines.vllm import internals
from tokenpriority_service.engines.vllm.wish import Wish


class PromptLogprobs:
    """A generating model whose prompts are scored. vLLM counts ties into the rank: #{v: q(v) >= q(y)}."""

    name = "prompt_logprobs"
    signals = ("logprob", "rank")
    environment: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {"runner": "generate"}

    def longest(self, max_model_len: int) -> int:
        """vLLM wants room for the one token it must generate."""
        return max_model_len - 1

    async def rows(
        self, llm: Any, ids: Ids, wish: Wish, request: str, lora: Any = None, salt: str = "", priority: int = 0
    ) -> Rows:
        """[2, T - score_from] float32 for ids (T,): logprob and rank."""
        params = internals.SamplingParams(
            max_tokens=1,
            temperature=0,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=internals.RequestOutputKind.FINAL_ONLY,
        )
        prompt = internals.prompt(ids.tolist(), salt)
        async for output in llm.generate(prompt, params, request, lora_request=lora, priority=priority):
            if output.finished:
                rows: Rows = internals.prompt_logprobs(output, prompt["prompt_token_ids"]).numpy()
                return rows[:, wish.score_from - 1 :]
        raise ValueError("vLLM ended the request without an answer")

    async def check(self, llm: Any, lora: Any = None) -> None:
        """Raise ValueError if a probe's logprobs are not logprobs."""
        config = llm.model_config
        ids = probe_ids(min(48, self.longest(config.max_model_len)), config.get_vocab_size())
        rows = await self.rows(llm, ids, Wish(), "check", lora)
        if not (rows[0] <= 0).all() or not (rows[1] >= 1).all():
            raise ValueError("the self-check failed: vLLM's prompt logprobs are not logprobs")
