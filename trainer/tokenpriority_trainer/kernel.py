"""The lm head and a loss of log-probs in one sweep over chunks of rows: no more than one chunk's logits exist.

The loss is known when a chunk's log-probs are, so its logits become in place the gradient of the loss on them:

    logits  ->  dL/dlogits = slope * (onehot - softmax),  slope = dL/dlogprob

and forward and backward together take three products with the lm head, where a head that computes its logits anew for
the backward pass takes four. Statistics are float32, whatever the products are. Knows logits, log-probs and gradients.
Knows nothing of weights: a `charge` says what the log-probs cost.

Shapes: n rows, one per token; H hidden size; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Charge = Callable[[slice, Tensor, Tensor], Tensor]
"""`(rows, logprob, entropy) -> loss`: what these rows cost, a scalar with gradient on `logprob`; `entropy` has none."""

BUFFER_BYTES = 1 << 27
"""About the size of a chunk's logits, where that is not fewer rows than a product needs to be worth its weights."""
BLOCK_BYTES = {"cpu": 1 << 21}
"""About the size of the temporaries of softmax: those of a CPU stay in its cache."""
OTHER_BLOCK_BYTES = 1 << 26
"""The same for other devices, where a kernel's launch counts for more."""

_HAS_OUT_DTYPE = torch.__version__ >= "2.8"  # which torch compares as versions


@dataclass(frozen=True, slots=True)
class Shaping:
    """What a model does to its logits: multiplies them by `scale`, then caps them by cap * tanh(logit / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def of(self, raw: Tensor) -> Tensor:
        """Shaped logits, at least float32; may be `raw` itself."""
        logits = raw.to(_wide(raw.dtype))
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def back_(self, gradient: Tensor, shaped: Tensor) -> Tensor:
        """From the gradient on shaped logits to that on the raw ones, in place."""
        if self.cap is not None:
            gradient.mul_(1 - (shaped / self.cap).square_())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


class Scored(NamedTuple):
    """What the model says of each row's target, without gradient."""

    logprob: Tensor
    """(n,) at least float32."""
    entropy: Tensor
    """(n,) nats, at least float32."""
    is_top1: Tensor
    """(n,) boolean, whether the target is the likeliest token."""


class _Chunk(NamedTuple):
    rows: slice
    inputs: Tensor
    targets: Tensor
    logits: Tensor
    scored: Scored
    log_z: Tensor


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows whose logits are computed together. Each chunk reads the lm head anew, which few rows do not repay."""
    least = 192 if device.type == "cpu" else 1024
    return max(least, BUFFER_BYTES // (4 * vocabulary))


def charged(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    charge: Charge,
    shaping: Shaping | None = None,
    rows: int | None = None,
) -> tuple[Tensor, Scored]:
    """The loss that `charge` makes of the rows' log-probs, summed over chunks, and the rows' scores.

    `hidden` (n, H), `weight` (V, H), `bias` (V,) or None, `targets` (n,) int64 in [0, V); products are in autocast's
    dtype where it is on, else in that of `hidden`. The loss is a scalar, at least float32, with gradient to hidden,
    weight and bias as far as they require one; it can be differentiated once. Gradients of the weight are summed over
    chunks in float32 at least. With n = 0 it is a 0 that keeps hidden and weight connected. `rows` is the size of a
    chunk, `chunk_rows` by default.
    """
    size = rows or chunk_rows(weight.shape[0], hidden.device)
    function: Any = _ChargedHead  # whose `apply` is untyped
    loss, *found = function.apply(hidden, weight, bias, targets, charge, shaping or Shaping(), size)
    return loss, Scored(*found)


@torch.no_grad()
def scored(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shaping: Shaping | None = None,
    rows: int | None = None,
) -> Scored:
    """The rows' scores alone: one product with the lm head, no gradient. Arguments as for `charged`."""
    size = rows or chunk_rows(weight.shape[0], hidden.device)
    matrix, offset = factors(hidden, weight, bias)
    chunks = _chunks(hidden, matrix, offset, targets, shaping or Shaping(), size)
    return _joined([chunk.scored for chunk in chunks], matrix)


class _ChargedHead(torch.autograd.Function):
    """`charged` as autograd sees it: gradients are made in the forward pass, the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        charge: Charge,
        shaping: Shaping,
        size: int,
    ) -> tuple[Tensor, ...]:
        matrix, offset = factors(hidden, weight, bias)
        into = _Gradients(hidden, matrix, offset, ctx.needs_input_grad)
        loss = torch.zeros((), dtype=_wide(matrix.dtype), device=hidden.device)
        found: list[Scored] = []
        for chunk in _chunks(hidden, matrix, offset, targets, shaping, size):
            cost, slope = _cost(charge, chunk)
            loss += cost
            found.append(chunk.scored)
            into.add(chunk, matrix, slope, shaping)
        ctx.save_for_backward(into.hidden, into.weight, into.bias)
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        result = _joined(found, matrix)
        ctx.mark_non_differentiable(*result)
        return loss, *result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # In place, since a copy of the weight's gradient is what this file is there to avoid. Autograd notices if the
        # saved tensors are asked for once more, and refuses.
        gradients = [
            None if gradient is None else gradient.mul_(upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None, None, None


class _Gradients:
    """Gradients on hidden, weight and bias, each None if not wanted, filled chunk by chunk."""

    def __init__(self, hidden: Tensor, matrix: Tensor, offset: Tensor | None, wanted: tuple[bool, ...]) -> None:
        wide = _wide(matrix.dtype)
        self.hidden = torch.empty_like(hidden, dtype=matrix.dtype) if wanted[0] else None
        self.weight = torch.zeros_like(matrix, dtype=wide) if wanted[1] else None
        self.bias = torch.zeros_like(offset, dtype=wide) if offset is not None and wanted[2] else None

    def add(self, chunk: _Chunk, matrix: Tensor, slope: Tensor, shaping: Shaping) -> None:
        """Add a chunk, whose logits are used up."""
        if self.hidden is None and self.weight is None and self.bias is None:
            return
        gradient = _on_logits_(chunk, slope, shaping)
        if self.hidden is not None:
            torch.mm(gradient, matrix, out=self.hidden[chunk.rows])
        if self.weight is not None:
            _add_product_(self.weight, gradient.t(), chunk.inputs)
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)


def factors(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The head in the dtype of products: autocast's where it is on, else that of `hidden`."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _chunks(
    hidden: Tensor, matrix: Tensor, offset: Tensor | None, targets: Tensor, shaping: Shaping, size: int
) -> Iterator[_Chunk]:
    """Chunk by chunk; all share one buffer of logits, which the next chunk overwrites."""
    buffer = matrix.new_empty((min(size, len(targets)), len(matrix)))
    for start in range(0, len(targets), size):
        rows = slice(start, min(start + size, len(targets)))
        inputs = hidden[rows].to(matrix.dtype)
        logits = torch.mm(inputs, matrix.t(), out=buffer[: rows.stop - start])
        if offset is not None:
            logits += offset
        yield _Chunk(rows, inputs, targets[rows], logits, *_read(logits, targets[rows], shaping))


def _read(raw: Tensor, targets: Tensor, shaping: Shaping) -> tuple[Scored, Tensor]:
    """Scores and log-sum-exp (n,) of logits (n, V), some rows at a time."""
    size = _block_rows(raw)
    parts: list[tuple[Tensor, ...]] = []
    for block, ids in zip(raw.split(size), targets.split(size), strict=True):
        logits = shaping.of(block)
        highest, likeliest = logits.max(-1)
        powers = (logits - highest[:, None]).exp_()
        total = powers.sum(-1)
        log_z = highest + total.log()
        logprob = logits.gather(-1, ids[:, None])[:, 0] - log_z
        entropy = log_z - powers.mul_(logits).sum(-1) / total
        parts.append((logprob, entropy, likeliest == ids, log_z))
    logprob, entropy, is_top1, log_z = (torch.cat(each) for each in zip(*parts, strict=True))
    return Scored(logprob, entropy, is_top1), log_z


def _on_logits_(chunk: _Chunk, slope: Tensor, shaping: Shaping) -> Tensor:
    """The chunk's logits (n, V) turned into the gradient on them."""
    size = _block_rows(chunk.logits)
    blocks = (each.split(size) for each in (chunk.logits, chunk.targets, chunk.log_z, slope))
    for block, ids, log_z, rate in zip(*blocks, strict=True):
        logits = shaping.of(block)
        gradient = (logits - log_z[:, None]).exp_().mul_(-rate[:, None])
        gradient.scatter_add_(-1, ids[:, None], rate[:, None])
        block.copy_(shaping.back_(gradient, logits))
    return chunk.logits


def _cost(charge: Charge, chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """What a chunk costs and the slope of that on each log-prob (n,)."""
    with torch.enable_grad():
        logprob = chunk.scored.logprob.detach().requires_grad_()
        cost = charge(chunk.rows, logprob, chunk.scored.entropy)
        (slope,) = torch.autograd.grad(cost, logprob)
    return cost.detach(), slope


def _joined(parts: list[Scored], like: Tensor) -> Scored:
    if not parts:
        empty = like.new_empty(0, dtype=_wide(like.dtype))
        return Scored(empty, empty.clone(), empty.bool())
    return Scored(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _add_product_(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into += left @ right without rounding the product to the factors' dtype first."""
    if into.dtype == left.dtype:
        into.addmm_(left, right)
    elif into.is_cuda and _HAS_OUT_DTYPE:
        torch.addmm(into, left, right, out_dtype=into.dtype, out=into)
    else:
        into.addmm_(left.to(into.dtype), right.to(into.dtype))


def _block_rows(logits: Tensor) -> int:
    size = BLOCK_BYTES.get(logits.device.type, OTHER_BLOCK_BYTES)
    return max(1, size // (4 * logits.shape[-1]))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
