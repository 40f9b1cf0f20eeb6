"""What a model must show at load before it may score.

Knows how to hold our reading of an architecture against the model's own forward, so that an architecture we do not
know fails at load and never scores wrongly. Knows nothing of real text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenpriority_service.engines.contract import probe_ids
from tokenpriority_service.engines.head import Head, hidden_states

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest difference allowed between two logits of one row, as a share of the row's largest logit."""

# Soft caps hardly show on small logits, so lm_head's input is also tried this much larger.
_AMPLIFY = (1.0, 16.0)
_LENGTH = 16


@torch.inference_mode()
def check_model(model: PreTrainedModel, head: Head, vocab_size: int, max_model_len: int) -> None:
    """Raise ValueError if the head is not this model's, or a row sees what stands to its right.

    Two sequences with one beginning and two endings go through the model's own forward and through ours. The logits
    must agree, and those of the common beginning must be the same in both. Their ids are below `vocab_size`, their
    length at most `max_model_len`.
    """
    length = min(_LENGTH, max_model_len)
    ids = _probe_ids(length, vocab_size).to(model.device)
    hidden = hidden_states(model, ids)
    for factor in _AMPLIFY:
        hook = head.amplify(factor)
        try:
            theirs = model(input_ids=ids, use_cache=False).logits.float()
            ours = head.logits(hidden.flatten(0, 1)).view(*ids.shape, -1)
        finally:
            hook.remove()
        _compare(ours, theirs, model, "its own forward and our reading of its head give different logits")
    same = length // 2
    left, right = head.logits(hidden[0, :same]), head.logits(hidden[1, :same])
    _compare(left, right, model, "a token's logits change with the tokens after it, so it is not causal")


def _probe_ids(length: int, vocab_size: int) -> Tensor:
    """[2, length] ids spread over the vocabulary, the same in the first half and different in the second."""
    ids = torch.from_numpy(probe_ids(length, vocab_size).astype("int64"))
    other = ids.clone()
    other[length // 2 :] = (other[length // 2 :] + 1 + vocab_size // 2) % vocab_size
    return torch.stack([ids, other])


def _compare(ours: Tensor, theirs: Tensor, model: PreTrainedModel, what: str) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(
            f"model: {type(model).__name__} cannot be scored: {what} (shapes {list(ours.shape)}, {list(theirs.shape)})"
        )
    # Equal infinities (a suppressed vocabulary) agree; NaN agrees with nothing.
    finite = torch.where(theirs.isfinite(), theirs, 0.0)
    allowed = TOLERANCE[model.dtype] * finite.abs().amax(-1, keepdim=True).clamp(min=1e-3)
    agree = (ours == theirs) | ((ours - theirs).abs() <= allowed)
    if not agree.all():
        worst = (ours - theirs)[~agree].abs().max().item()
        raise ValueError(f"model: {type(model).__name__} cannot be scored: {what} (by up to {worst:.3g})")
