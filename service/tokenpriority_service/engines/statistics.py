"""Logits to evidence: the signals of each row, from the full vocabulary.

Knows float32 logits, targets and the definitions of the signals, also where each process holds only a shard of the
vocabulary. Knows nothing of models, sequences or batches, and imports torch alone, so that any engine can run it where
its logits are.

Shapes: n rows, V the vocabulary (the local part of it, if sharded).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

VERSION = 3
"""Part of every fingerprint; raised whenever a change here moves a number."""

SIGNALS = 6
"""Rows always returned: logprob, entropy, top1_logprob, rank, mass_above, mass_tied."""

TOP = 20
"""Of how many tokens `entropy_top20` is the entropy."""

# Elements of the block all passes run over before the next is begun. On a CPU one block and its two temporaries stay
# in the cache, 3 MiB for each thread (three times faster than passes over 256 MiB); on a GPU they only have to fill the
# device.
_CPU_BLOCK_OF_A_THREAD = 1 << 18
_GPU_BLOCK = 1 << 24

# Probabilities below exp(-87) are taken as that, 1.6e-38: the next ones down are denormal, ten times slower on a CPU,
# and the product of exp(-inf) = 0 with -inf would be NaN. Over a million tokens this adds 1e-30 to a sum that is >= 1.
_FLOOR = -87.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shard:
    """The local part of a vocabulary that is split evenly over processes; all call with the same rows at once."""

    start: int
    """Id of the token in the first local column."""
    gather: Callable[[Tensor], Tensor]
    """From [n, k] of this process to [processes, n, k] of all, in every process."""


def token_statistics(
    logits: Tensor, targets: Tensor, *, top20: bool = False, shard: Shard | None = None, fused: bool = False
) -> Tensor:
    """Evidence of each row, [6, n] float32 on the device of the logits, rows in the order of `evidence.SIGNALS`; with
    `top20` a seventh row, `entropy_top20`.

    `logits` [n, V] float32 is overwritten; `targets` [n] int64 are ids below the whole vocabulary's size. Natural
    logarithm; with q = softmax(logits) and y the target: log q(y); -sum q log q; max log q; 1 + #{v: z_v > z_y}; sum
    of q(v) over z_v > z_y; sum of q(v) over v != y with z_v = z_y; the entropy of the 20 largest q, renormalised. Above
    and tied are decided on the logits z themselves, so they are exact; the rank is exact below 2**24. Logits of -inf (a
    suppressed vocabulary) have probability 0. A row with NaN, +inf or nothing finite comes back NaN, a target of -inf
    as a logprob of -inf: never as a plausible number.

    With a `shard`, V is local and all processes return the same; only [n, 2], [n, 5] and [n, 20] leave a process.

    `fused` runs one kernel made by torch.compile over all rows, two to three times as fast on a CPU, without
    temporaries; ask `can_fuse` first. Otherwise two [b, V] float32 temporaries exist beside the logits, b rows being
    one block (at least one row; about 1 MiB for each thread of a CPU, 64 MiB on a GPU).
    """
    largest = _largest(logits, shard) if top20 else None
    start = 0 if shard is None else shard.start
    kernels = _fused() if fused and len(logits) > 1 else _BLOCKED  # a single row would be a kernel of its own
    if shard is None:
        ends, sums = kernels.both(logits, targets)
    else:  # two collectives in all
        ends = shard.gather(_ends(logits, targets, start)).amax(0)
        sums = shard.gather(kernels.sums(logits, ends)).sum(0)
    evidence = _evidence(ends, sums)
    return evidence if largest is None else torch.cat([evidence, _entropy(largest)[None]])


@functools.cache
def can_fuse(device: str) -> bool:
    """Whether torch.compile works here (on a CPU it needs a C++ compiler); tried once on a few numbers."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return False
    try:
        token_statistics(torch.zeros(2, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device), fused=True)
    except Exception as error:  # whatever a missing or broken compiler raises
        _logger.warning("statistics are not fused, which costs speed: %s", str(error).strip().splitlines()[:1])
        return False
    return True


def _ends(logits: Tensor, targets: Tensor, start: int) -> Tensor:
    """[b, 2]: the target's logit, -inf if another process holds it, and the largest."""
    local = targets - start
    here = (local >= 0) & (local < logits.shape[1])
    target = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    return torch.stack([torch.where(here, target, -torch.inf), logits.amax(1)], 1)


def _fused_both(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    ends = _ends(logits, targets, 0)
    return ends, _fused_sums(logits, ends)


def _fused_sums(logits: Tensor, ends: Tensor) -> Tensor:
    """What `_blocked_sums` gives, in a form that compiles to one loop."""
    target, peak = ends[:, :1], ends[:, 1:]
    shifted = (logits - peak).clamp(min=_FLOOR)
    weights = shifted.exp()
    above = logits > target
    return torch.stack(
        [
            weights.sum(1),
            (shifted * weights).sum(1),
            torch.where(above, weights, 0.0).sum(1),
            torch.where(above, 1.0, 0.0).sum(1),
            torch.where(logits == target, 1.0, 0.0).sum(1),
        ],
        1,
    )


def _blocked_both(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    ends = torch.empty(len(logits), 2, dtype=torch.float32, device=logits.device)
    sums = torch.empty(len(logits), 5, dtype=torch.float32, device=logits.device)
    space = _space(logits)
    for rows in _blocks(logits):
        ends[rows] = _ends(logits[rows], targets[rows], 0)
        sums[rows] = _block_sums(logits[rows], ends[rows], space)
    return ends, sums


def _blocked_sums(logits: Tensor, ends: Tensor) -> Tensor:
    """[n, 5], with z - peak = s: sum of e^s, of s e^s, of e^s above the target, tokens above, tokens tied (the target
    itself too). Overwrites the logits.
    """
    space = _space(logits)
    return torch.cat([_block_sums(logits[rows], ends[rows], space) for rows in _blocks(logits)])


def _blocks(logits: Tensor) -> list[slice]:
    size = _block_size(logits)
    return [slice(first, first + size) for first in range(0, len(logits), size)]


def _block_size(logits: Tensor) -> int:
    """Rows of a block: on a CPU as many for every thread, since torch shares sums out by rows and all else by elements,
    and what one thread wrote another is slow to read (3 rows on 2 threads take twice the time of 2 or 4).
    """
    if logits.is_cuda:
        return max(1, _GPU_BLOCK // logits.shape[1])
    return torch.get_num_threads() * max(1, round(_CPU_BLOCK_OF_A_THREAD / logits.shape[1]))


def _space(logits: Tensor) -> Tensor:
    """Two temporaries of one block, used for all of them."""
    rows = min(_block_size(logits), len(logits))
    return torch.empty(2, rows, logits.shape[1], dtype=torch.float32, device=logits.device)


def _block_sums(logits: Tensor, ends: Tensor, space: Tensor) -> Tensor:
    above, weights = space[:, : len(logits)]
    target, peak = ends[:, :1], ends[:, 1:]
    torch.eq(logits, target, out=weights)
    tied_count = weights.sum(1)
    torch.gt(logits, target, out=above)
    above_count = above.sum(1)
    shifted = logits.sub_(peak).clamp_(min=_FLOOR)
    torch.exp(shifted, out=weights)
    total = weights.sum(1)
    return torch.stack([total, shifted.mul_(weights).sum(1), above.mul_(weights).sum(1), above_count, tied_count], 1)


@dataclass(frozen=True, slots=True)
class _Kernels:
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Logits and targets of the whole vocabulary -> ends [n, 2] and sums [n, 5]."""
    sums: Callable[[Tensor, Tensor], Tensor]
    """Local logits, and the ends over the whole vocabulary -> local sums [n, 5]."""


_BLOCKED = _Kernels(_blocked_both, _blocked_sums)


@functools.cache
def _fused() -> _Kernels:
    return _Kernels(torch.compile(_fused_both, dynamic=True), torch.compile(_fused_sums, dynamic=True))


def _evidence(ends: Tensor, sums: Tensor) -> Tensor:
    """[6, n] from the target's and the largest logits [n, 2] and the sums [n, 5] over the whole vocabulary."""
    target, peak = ends.unbind(1)
    total, weighted, above, above_count, tied_count = sums.unbind(1)
    log_total = total.log()
    logprob = (target - peak) - log_total
    probability = logprob.exp()
    tied = (tied_count - 1) * probability
    # Sums over the same weights may round apart; the masses of disjoint tokens stay between 0 and 1 together.
    mass_above = torch.minimum(above / total, 1 - (tied + probability)).clamp(min=0)
    return torch.stack([logprob, log_total - weighted / total, -log_total, above_count + 1, mass_above, tied])


def _largest(logits: Tensor, shard: Shard | None) -> Tensor:
    """[n, 20] or fewer: the largest logits of the whole vocabulary."""
    largest = logits.topk(min(TOP, logits.shape[1]), dim=1).values
    if shard is None:
        return largest
    everywhere = shard.gather(largest).transpose(0, 1).flatten(1)
    return everywhere.topk(min(TOP, everywhere.shape[1]), dim=1).values


def _entropy(logits: Tensor) -> Tensor:
    """[n]: entropy of softmax over [n, k] logits."""
    logprob = logits.log_softmax(1).clamp(min=_FLOOR)
    return -(logprob.exp() * logprob).sum(1)
