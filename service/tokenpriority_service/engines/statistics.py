"""Logits to evidence: the six signals of each row, from the full vocabulary.

Knows float32 logits, targets and the definitions of the signals. Knows nothing of models, sequences or batches, and
imports torch alone, so that any engine can run it where its logits are.

Shapes: n rows, V the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

VERSION = 1
"""Part of every fingerprint; raised whenever a change here moves a number."""

SIGNALS = 6
"""Rows returned: logprob, entropy, top1_logprob, rank, mass_above, mass_tied."""

# Elements of the block all passes run over before the next is begun. On a CPU one block and its two temporaries stay
# in the cache (three times faster than passes over 256 MiB); on a GPU they only have to fill the device.
_CPU_BLOCK = 1 << 17
_GPU_BLOCK = 1 << 24

# exp() of this is 0 in float32, and its product with 0 is 0 where that of -inf would be NaN.
_FLOOR = -120.0


def token_statistics(logits: Tensor, targets: Tensor) -> Tensor:
    """Evidence of each row, [6, n] float32 on the device of the logits, rows in the order of `evidence.SIGNALS`.

    `logits` [n, V] float32 is overwritten; `targets` [n] int64 below V. Natural logarithm; with q = softmax(logits)
    and y the target: log q(y); -sum q log q; max log q; 1 + #{v: z_v > z_y}; sum of q(v) over z_v > z_y; sum of q(v)
    over v != y with z_v = z_y. Above and tied are decided on the logits z themselves, so they are exact; the rank is
    exact below 2**24. Logits of -inf (a suppressed vocabulary) have probability 0. A row with NaN, +inf or nothing
    finite comes back NaN, a target of -inf as a logprob of -inf: never as a plausible number.

    Beside the logits, two [b, V] float32 temporaries exist, b rows being one block (at least one row; 0.5 MiB on a
    CPU, 64 MiB on a GPU).
    """
    count, vocab = logits.shape
    block = max(1, (_GPU_BLOCK if logits.is_cuda else _CPU_BLOCK) // vocab)
    out = torch.empty(SIGNALS, count, dtype=torch.float32, device=logits.device)
    above, scratch = torch.empty(2, min(block, count), vocab, dtype=torch.float32, device=logits.device)
    for start in range(0, count, block):
        rows = logits[start : start + block]
        size = len(rows)
        _block(rows, targets[start : start + block], above[:size], scratch[:size], out[:, start : start + block])
    return out


def _block(logits: Tensor, targets: Tensor, above: Tensor, scratch: Tensor, out: Tensor) -> None:
    """Fill `out` [6, b]; overwrites logits, above and scratch, all [b, V]."""
    target = logits.gather(1, targets[:, None])
    torch.gt(logits, target, out=above)
    torch.eq(logits, target, out=scratch)
    others_above = above.sum(1)
    others_tied = scratch.sum(1) - 1

    peak = logits.amax(1, keepdim=True)
    shifted = logits.sub_(peak).clamp_(min=_FLOOR)
    weights = torch.exp(shifted, out=scratch)
    total = weights.sum(1)
    log_total = total.log()
    logprob = (target - peak).squeeze(1) - log_total
    probability = logprob.exp()
    tied = others_tied * probability

    out[0] = logprob
    out[1] = log_total - shifted.mul_(weights).sum(1) / total
    out[2] = -log_total
    out[3] = others_above + 1
    # Sums over the same weights may round apart; the masses of disjoint tokens stay between 0 and 1 together.
    out[4] = torch.minimum(weights.mul_(above).sum(1) / total, 1 - (tied + probability)).clamp_(min=0)
    out[5] = tied
