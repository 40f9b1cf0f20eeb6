"""vLLM's causal LMs as models that score: `models.LlamaForCausalLM` is vLLM's, with our pooler.

The classes are made when vLLM imports them by name; only that one model's code is loaded.
"""

from __future__ import annotations

from typing import Any

from tokenpriority_service.engines.vllm.plugin import ORIGINALS, replace_models
from tokenpriority_service.engines.vllm.wish import KEY


def __getattr__(name: str) -> type:
    if not ORIGINALS:
        # vLLM's own inspection of a class, in a process that nobody told of the plugin: `models` is registered already
        # in the process that asks.
        replace_models()
    if name not in ORIGINALS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return scoring(ORIGINALS[name].load_model_cls())


def scoring(base: Any) -> type:
    """A subclass of a vLLM causal LM, under its name, that has a pooler when it is run for pooling."""
    from tokenpriority_service.engines.vllm.pooler import LOGITS_BYTES, EvidencePooler

    class Scoring(base):  # type: ignore[misc]
        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            if vllm_config.model_config.runner_type == "pooling":
                given = vllm_config.additional_config.get(KEY, {})
                vocab_size = vllm_config.model_config.get_vocab_size()
                self.pooler = EvidencePooler(self, vocab_size, given.get("logits_bytes", LOGITS_BYTES))

    Scoring.__name__, Scoring.__qualname__ = base.__name__, base.__qualname__
    return Scoring
