"""Hidden states to evidence: the last step of a transformers causal LM, a few rows at a time.

Knows what architectures do after their lm_head (scales, soft caps) and how large the logits may be. Knows nothing of
sequences. `probe.check_model` holds what it knows against the model's own forward before anything is scored.

Shapes: n rows, H hidden, V the vocabulary, B sequences of L tokens.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tokenpriority_service.engines.chunks import chunk_rows
from tokenpriority_service.engines.statistics import token_statistics

_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_DIVISOR = "logits_scaling"
_NOT_A_DIVISOR_OF = ("hyperclovax",)
"""Architectures (`model_type`) that multiply by what the others divide by."""


def hidden_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """What lm_head is given, [B, L, H], for right-padded ids [B, L] int64.

    No attention mask: a causal model's row sees nothing to its right, and padding stands on the right.
    """
    hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


class Head:
    """lm_head and all that follows it, for one model.

    `logits_bytes` bounds one chunk of float32 logits. Raises ValueError if the model has no output embeddings.
    """

    def __init__(self, model: PreTrainedModel, logits_bytes: int) -> None:
        lm_head: Any = cast(Any, model).get_output_embeddings()
        if lm_head is None or model.base_model is model:
            raise ValueError(f"model: {type(model).__name__} has no output embeddings over a base model to score with")
        config = model.config.get_text_config()
        self._lm_head = lm_head
        self._dtype = model.dtype  # some models (Mamba) hand float32 rows on
        self._scale = _scale(config)
        self._cap = next((cap for name in _CAPS if (cap := _number(config, name))), None)
        self.vocab_size: int = lm_head.weight.shape[0]
        self.chunk_rows = chunk_rows(logits_bytes, self.vocab_size, lm_head.weight.device.type)

    def logits(self, rows: Tensor) -> Tensor:
        """Logits [n, V] float32 of hidden rows [n, H], at most `chunk_rows` of them for the bound to hold.

        They are computed in the model's dtype, as the model does, and scaled and capped in float32.
        """
        logits: Tensor = self._lm_head(rows.to(self._dtype)).float()
        if self._scale != 1:
            logits.mul_(self._scale)
        if self._cap is not None:
            logits.div_(self._cap).tanh_().mul_(self._cap)
        return logits

    def evidence(self, rows: Tensor, targets: Tensor, *, top20: bool = False) -> Tensor:
        """Evidence [6, n] float32 of hidden rows [n, H] for targets [n] int64, in chunks; [7, n] with `top20`."""
        chunks = [slice(start, start + self.chunk_rows) for start in range(0, len(rows), self.chunk_rows)]
        return torch.cat(
            [token_statistics(self.logits(rows[chunk]), targets[chunk], top20=top20) for chunk in chunks], dim=1
        )

    def amplify(self, factor: float) -> RemovableHandle:
        """Multiply whatever lm_head is given, here and in the model's own forward, until the handle is removed."""

        def multiply(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (inputs[0] * factor, *inputs[1:])

        handle: RemovableHandle = self._lm_head.register_forward_pre_hook(multiply)
        return handle


def _scale(config: Any) -> float:
    """The factor between lm_head's output and the logits; the cap comes after it."""
    factors = [number for name in _FACTORS if (number := _number(config, name)) is not None]
    divisor = _number(config, _DIVISOR)
    if divisor is not None:
        factors.append(divisor if config.model_type in _NOT_A_DIVISOR_OF else 1 / divisor)
    return math.prod(factors)


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
