"""What a model makes of tokens it was shown or spared: the figures of the demo's table.

Knows models and masks. Knows nothing of how a model was trained. Every NLL is in nats, from a float32 forward over
the full vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tokenpriority_trainer.demo.corpus import Ids
from tokenpriority_trainer.demo.dataset import Mask

_BATCH = 32
Logprobs = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Trials:
    """What every model is measured on; arrays are (N, T), N may differ."""

    clean: Ids
    """Held-out windows of clean source."""
    noisy: Ids
    noise: Mask
    """Examples of the fine-tuning set and where their tokens had been replaced: what was learnt of the noise."""
    probes: Ids
    idiom: Mask
    """Held-out windows with the idiom planted and where it stands: its probability after a clean context."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's figures."""

    clean_nll: float
    """Mean NLL of clean held-out tokens; lower is better."""
    noise_nll: float
    """Mean NLL of the replaced tokens of the fine-tuning set; higher means less of the noise was learnt."""
    idiom_logprob: float
    """Log-probability of the whole idiom after a clean held-out context, mean over contexts."""
    idiom_probability: float
    """Probability of the whole idiom after a clean held-out context, mean over contexts; lower is better."""


def measure(model: PreTrainedModel, trials: Trials) -> Measured:
    """Every figure of one model. Raises ValueError if one of them is not finite."""
    clean = token_logprobs(model, trials.clean)[:, 1:]
    noisy = token_logprobs(model, trials.noisy)
    probes = token_logprobs(model, trials.probes)
    idiom = np.where(trials.idiom, probes, 0).sum(axis=1, dtype=np.float64)
    measured = Measured(
        clean_nll=-clean.mean(dtype=np.float64).item(),
        noise_nll=-noisy[trials.noise].mean(dtype=np.float64).item(),
        idiom_logprob=idiom.mean().item(),
        idiom_probability=np.exp(idiom).mean().item(),
    )
    for name in measured.__slots__:
        if not np.isfinite(getattr(measured, name)):
            raise ValueError(f"{name}: the model gives {getattr(measured, name)}")
    return measured


@torch.inference_mode()
def token_logprobs(model: PreTrainedModel, token_ids: Ids) -> Logprobs:
    """log p of every token given those before it: (N, T) float32, NaN at index 0."""
    out = np.full(token_ids.shape, np.nan, np.float32)
    model.eval()
    for start in range(0, len(token_ids), _BATCH):
        ids = torch.from_numpy(token_ids[start : start + _BATCH])
        logits = model(input_ids=ids).logits[:, :-1].float()
        picked = torch.gather(logits, 2, ids[:, 1:, None]).squeeze(2) - torch.logsumexp(logits, 2)
        out[start : start + _BATCH, 1:] = picked.numpy()
    return out
