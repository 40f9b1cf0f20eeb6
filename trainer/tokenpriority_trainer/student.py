"""A model's forward pass over a batch: log-probabilities, the signals asked for, whole distributions if need be.

Knows the four ways through the student. TRL's fused lm head, a library's and the model's own logits give log-probs, the
last where the first does not give all that is read; the weighted head gives the loss itself. Knows nothing of methods.

Shapes: R rows, C columns of the batch; n trained tokens; V vocabulary. What is (R, C - 1) speaks of token i + 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from tokenpriority.distribution import evidence_of
from tokenpriority.evidence import Evidence
from tokenpriority_trainer.documents import IGNORED
from tokenpriority_trainer.head import WeightedHead, check_width
from tokenpriority_trainer.live import TORCH

FUSED = frozenset({"logprob", "entropy", "collision"})
"""The signals TRL's fused lm head gives, the last where `add_fused_signals` has asked for it."""

CHUNK_BYTES = 1 << 26
"""About how much of a distribution is looked at together: its float32 copy and some temporaries of that size."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What the student says of a batch."""

    log_probs: Tensor
    """(R, C - 1), with gradient but for the weighted head; 0 where the label is ignored."""
    label_mask: Tensor
    """(R, C - 1) boolean, False where the label is ignored."""
    is_top1: Tensor | None
    """(R, C - 1), whether the label is the likeliest token; 0 or False where it is ignored. None from a library."""
    evidence: Evidence
    """(R, C) on the tokens' own positions, float32, without gradient; 0 where the label is ignored."""
    logits: Tensor | None = None
    """(R, C, V) with gradient, from the pass that builds them."""
    aux_loss: Tensor | None = None
    """The routers' loss of a mixture of experts."""
    loss: Tensor | None = None
    """The weighted loss, from the pass that makes it; `log_probs` then have no gradient."""


def add_fused_signals(model: Any, signals: Iterable[str]) -> None:
    """Have a causal language model's fused lm head give what `forward` reads of it for these signals.

    SFTTrainer has given it one that gives no collision; where that is read, another takes its place.
    """
    wanted = frozenset(signals)
    if "collision" in wanted and wanted <= FUSED:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "log_sum_sq_probs", "is_top1"))


def forward(model: Any, batch: Mapping[str, Any], *, signals: Iterable[str], distribution: bool, router: bool) -> Pass:
    """The student's pass over a batch. `entropy` is among its evidence whatever is read, since it is reported.

    The model must have been given to `add_fused_signals`. Raises WeightError if it scores other positions than the
    batch has.
    """
    options = {"use_cache": False, **({"output_router_logits": True} if router else {})}
    wanted = {"entropy", *signals}
    if wanted <= FUSED and not distribution:
        out = model(**batch, **options, fused_lm_head=True)
        check_width(out.log_probs.shape[1] + 1, batch["labels"].shape[1])
        evidence = _fused_evidence(out, wanted)
        return Pass(out.log_probs, out.label_mask, out.is_top1, evidence, aux_loss=getattr(out, "aux_loss", None))
    out = model(**{key: value for key, value in batch.items() if key != "labels"}, **options)
    check_width(out.logits.shape[1], batch["labels"].shape[1])
    return _from_logits(out, batch["labels"], wanted - {"logprob"})


def forward_weighted(model: Any, batch: Mapping[str, Any], head: WeightedHead) -> Pass:
    """The student's pass over a batch, ending in the weighted loss; its evidence is logprob and entropy.

    The model must have been given to `add_weighted_head`. Raises WeightError as `forward`.
    """
    out = model(**batch, use_cache=False, weighted_head=head)
    evidence = Evidence(logprob=_unshifted(out.log_probs), entropy=_unshifted(out.entropy))
    return Pass(out.log_probs, out.label_mask, out.is_top1, evidence, loss=out.loss)


def forward_library(model: Any, batch: Mapping[str, Any]) -> Pass:
    """The student's pass over a batch, its log-probs by a library; its evidence is what `libraries.SIGNALS` says.

    The model must have been given to `add_library_head`. Raises WeightError as `forward`.
    """
    out = model(**batch, use_cache=False, library_head=True)
    entropy = None if out.entropy is None else _unshifted(out.entropy)
    evidence = Evidence(logprob=_unshifted(out.log_probs.detach()), entropy=entropy)
    return Pass(out.log_probs, out.label_mask, None, evidence)


def frozen_evidence(logits: Tensor, labels: Tensor, signals: Iterable[str]) -> Evidence:
    """Evidence (R, C) of the trained tokens from logits (R, C, V), without gradient, float32; 0 elsewhere."""
    mask = labels[:, 1:] != IGNORED
    found, _ = _signals(logits[:, :-1][mask], labels[:, 1:][mask], signals)
    return Evidence(**{name: _scattered(values, mask) for name, values in found.items()})


def _fused_evidence(out: Any, names: set[str]) -> Evidence:
    evidence = {"logprob": out.log_probs.detach(), "entropy": out.entropy.detach()}
    if "collision" in names:
        evidence["collision"] = out.log_sum_sq_probs.exp().masked_fill(~out.label_mask, 0)  # TRL's logarithm is 0 there
    return Evidence(**{name: _unshifted(values) for name, values in evidence.items()})


def _from_logits(out: Any, labels: Tensor, names: set[str]) -> Pass:
    targets = labels[:, 1:]
    mask = targets != IGNORED
    picked = out.logits[:, :-1][mask]
    # With no trained token at all an empty sum keeps the loss connected to the model.
    log_probs = -torch.nn.functional.cross_entropy(picked.float(), targets[mask], reduction="none")
    signals, top1 = _signals(picked, targets[mask], names)
    signals["logprob"] = log_probs.detach()
    shape = mask.shape
    return Pass(
        log_probs=log_probs.new_zeros(shape).masked_scatter(mask, log_probs),
        label_mask=mask,
        is_top1=mask.new_zeros(shape).masked_scatter(mask, top1),
        evidence=Evidence(**{name: _scattered(values, mask) for name, values in signals.items()}),
        logits=out.logits,
        aux_loss=getattr(out, "aux_loss", None),
    )


@torch.no_grad()
def _signals(picked: Tensor, targets: Tensor, names: Iterable[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Signals (n,) float32 and whether the target is the likeliest token, from logits (n, V), some rows at a time."""
    size = max(1, CHUNK_BYTES // (4 * picked.shape[-1]))
    parts: list[Evidence] = []
    top1: list[Tensor] = []
    for logits, ids in zip(picked.detach().split(size), targets.split(size), strict=True):
        parts.append(evidence_of(logits.float(), ids, names=names, xp=TORCH))
        top1.append(logits.argmax(-1) == ids)
    present = [part.present() for part in parts]
    return {name: torch.cat([part[name] for part in present]) for name in present[0]}, torch.cat(top1)


def _scattered(values: Tensor, mask: Tensor) -> Tensor:
    """(n,) -> (R, C) on the tokens' own positions, 0 elsewhere; `mask` is (R, C - 1)."""
    return _unshifted(values.new_zeros(mask.shape).masked_scatter(mask, values))


def _unshifted(values: Tensor) -> Tensor:
    """(R, C - 1) on the predicting positions -> (R, C) on the predicted."""
    return torch.nn.functional.pad(values.float(), (1, 0))
