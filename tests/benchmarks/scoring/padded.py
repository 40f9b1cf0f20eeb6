"""What one would write first with transformers: padded batches, full logits, the target's log-probability.

Holds one model in its process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

_ROWS = 8
_model: Any = None


def load(path: Path, dtype: str, threads: int) -> None:
    """The model of all that is scored from now on."""
    global _model
    torch.set_num_threads(threads)
    load_model: Any = AutoModelForCausalLM.from_pretrained
    _model = load_model(path, dtype=getattr(torch, dtype)).eval()


@torch.inference_mode()
def score(batch: list[list[int]]) -> None:
    """The log-probability of every token of these sequences but the first, given up at once."""
    for start in range(0, len(batch), _ROWS):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch[start : start + _ROWS]], True)
        for row, targets in zip(_model(input_ids=ids).logits, ids, strict=True):
            row[:-1].float().log_softmax(-1).gather(1, targets[1:, None])
