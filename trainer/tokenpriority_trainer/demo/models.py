"""The demo's own small models: made, trained and saved.

Preparation, not the product: a plain loop over windows of tokens. Knows nothing of noise, priorities or servers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenpriority_trainer.demo.corpus import Ids
from tokenpriority_trainer.demo.scale import Scale

Report = Callable[[int, float], None]
"""Called after every step with the steps done and that step's loss in nats per token."""


def new_model(scale: Scale, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of the scale's shape, float32, random weights decided by the seed, input and output embeddings tied."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=scale.width,
            intermediate_size=scale.width * 8 // 3,
            num_hidden_layers=scale.layers,
            num_attention_heads=scale.heads,
            num_key_value_heads=scale.heads,
            max_position_embeddings=2 * scale.length,  # the trainer's probe of the server is a text, of any length
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def fit(model: LlamaForCausalLM, rows: Ids, *, steps: int, batch: int, lr: float, seed: int, report: Report) -> None:
    """Train `model` in place for `steps` steps of `batch` rows (N, T) each, every row once before any twice.

    AdamW, gradients clipped to norm 1, the rate rising over the first twentieth of the steps and falling as a cosine
    to a tenth.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    order = _order(len(rows), steps * batch, seed)
    model.train()
    for step in range(steps):
        ids = torch.from_numpy(rows[order[step * batch : (step + 1) * batch]])
        logits = model(input_ids=ids[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        report(step + 1, loss.item())
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Model and tokenizer as one transformers checkpoint."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rate(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def _order(rows: int, wanted: int, seed: int) -> Ids:
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(rows) for _ in range(-(-wanted // rows))]
    return np.concatenate(epochs)[:wanted]
