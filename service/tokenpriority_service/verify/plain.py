"""Evidence by transformers alone: the model's own forward, one sequence at a time, and the definitions.

A second implementation on purpose: it shares nothing with the engines, not even the statistics. Knows how far a rank
or a mass may move when logits move by no more than rounding. Knows nothing of engines.

Shapes: T tokens, n rows, V the vocabulary. Rows are those of `SIGNALS + OPTIONAL_SIGNALS`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tokenpriority_service.engines.engine import Ids
from tokenpriority_service.verify.memory import place

Numbers = np.ndarray[Any, np.dtype[np.float64]]

_BLOCK = 1 << 24
"""Logits the statistics are computed on at once."""


@dataclass(frozen=True, slots=True)
class Plain:
    """What transformers says of the sequences. Arrays are [7, N] float64 over all scored positions in order."""

    values: Numbers
    low: Numbers
    high: Numbers
    """Between these a value is right: the value itself, and for rank and masses what they would be if logits that
    differ from the target's by no more than the window changed places with it."""
    seconds: float
    load_seconds: float


def run_plain(model: str, dtype: str, precision: str, sequences: list[Ids], window: float) -> Plain:
    """Score sequences with weights of `dtype`, computing in `precision` (the dtype itself, or float64).

    `window` is the distance of logits, in nats, below which two may change places. Raises ValueError if there is too
    little memory.
    """
    began = time.perf_counter()
    loaded, device = _load(model, dtype, precision, max(map(len, sequences)))
    load_seconds = time.perf_counter() - began
    began = time.perf_counter()
    tensors = [torch.from_numpy(ids.astype(np.int64)).to(device) for ids in sequences if len(ids) > 1]
    values, low, high = torch.cat([_score(loaded, each, window) for each in tensors], 2).numpy()
    return Plain(values, low, high, time.perf_counter() - began, load_seconds)


def _load(model: str, dtype: str, precision: str, longest: int) -> tuple[Any, str]:
    config: Any = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    weights = sum(each.numel() for each in empty.parameters())
    size = torch.finfo(getattr(torch, precision)).bits // 8
    # Logits exist twice while one sequence is scored: as the model gives them, and in blocks of float64.
    device = place(weights * size + 2 * longest * int(config.get_text_config().vocab_size) * 8, precision)
    load: Any = AutoModelForCausalLM.from_pretrained
    loaded = load(model, dtype=getattr(torch, dtype), trust_remote_code=False).eval().requires_grad_(False)
    loaded = loaded.to(device)
    # Only to float64: a cast to a half type would also round the buffers that a model keeps in float32.
    return (loaded if precision == dtype else loaded.double()), device


@torch.inference_mode()
def _score(model: Any, ids: Tensor, window: float) -> Tensor:
    """[3, 7, T - 1] float64 on the CPU: values, low, high."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    rows = max(1, _BLOCK // logits.shape[1])
    blocks = zip(logits.split(rows), ids[1:].split(rows), strict=True)
    return torch.cat([_statistics(block.double(), targets, window) for block, targets in blocks], 2).cpu()


def _statistics(z: Tensor, targets: Tensor, window: float) -> Tensor:
    """[3, 7, n] float64 of logits [n, V] by the definitions."""
    log_q = z - z.logsumexp(1, keepdim=True)
    q = log_q.exp()
    distance = z - z.gather(1, targets[:, None])
    other = torch.ones_like(z, dtype=torch.bool).scatter_(1, targets[:, None], False)
    near = (distance.abs() <= window) & other
    surely, maybe, above, tied = distance > window, (distance > 0) | near, distance > 0, (distance == 0) & other
    top = log_q.topk(min(20, z.shape[1]), dim=1).values.log_softmax(1)
    nothing = torch.zeros_like(q[:, 0])
    point = [
        log_q.gather(1, targets[:, None])[:, 0],
        torch.special.entr(q).sum(1),
        log_q.amax(1),
    ]
    top20 = torch.special.entr(top.exp()).sum(1)

    def mass(of: Tensor) -> Tensor:
        return torch.where(of, q, 0.0).sum(1)

    values = [*point, 1.0 + above.sum(1), mass(above), mass(tied), top20]
    low = [*point, 1.0 + surely.sum(1), mass(surely), nothing, top20]
    high = [*point, 1.0 + maybe.sum(1), mass(maybe), mass(near), top20]
    return torch.stack([torch.stack(each) for each in (values, low, high)])
