"""What the trainer reports, split by sign.

Knows sums over tokens and how they become means over the whole global batch. Sums stay on the device until they are
asked for, so that no micro-batch waits for the GPU. Knows nothing of the loss or of where weights come from.
"""

from __future__ import annotations

import math
import time
from typing import Any, cast

import torch
from torch import Tensor

from tokenpriority_trainer.errors import Diverged
from tokenpriority_trainer.student import Pass


class SignMetrics:
    """Sums since the last `drain`, and totals since the start of training."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._names: tuple[str, ...] = ()
        self._tokens = 0
        self._since = time.perf_counter()
        self._waited = 0.0
        self.tokens = 0
        """Tokens trained on or over so far, padding apart, over all processes; as of the last `drain`."""
        self.wait_seconds = 0.0
        """Seconds waited for weights so far, by the process that waited longest; as of the last `drain`."""

    def start(self) -> None:
        """Count time from now."""
        self._since = time.perf_counter()

    def see(self, tokens: int) -> None:
        """Count the tokens of one micro-batch, padding apart."""
        self._tokens += tokens

    def add(self, passed: Pass, priorities: Tensor, weights: Tensor) -> None:
        """Add one micro-batch: the student's pass, the priorities that give the sign, the weights applied.

        Both (R, C - 1); `weights` are the priorities after schedule and clip.
        """
        nll, mask = -passed.log_probs.detach(), passed.label_mask
        pos, neg, zero = priorities > 0, priorities < 0, torch.zeros_like(nll)
        sums = {
            "nll_pos": torch.where(pos, nll, zero),
            "nll_neg": torch.where(neg, nll, zero),
            "pos": pos,
            "neg": neg,
            "valid": mask,
            "kept": priorities != 0,
            "weight_pos": torch.where(pos, weights, zero),
            "weight_neg": torch.where(neg, -weights, zero),
        }
        # Not every kernel gives these.
        if passed.evidence.entropy is not None:
            sums["entropy"] = torch.where(mask, cast(Tensor, passed.evidence.entropy)[:, 1:], zero)
        if passed.is_top1 is not None:
            sums["correct"] = passed.is_top1
        self._names = tuple(sums)
        self._parts.append(torch.stack([part.sum().float() for part in sums.values()]))

    def drain(self, accelerator: Any, waited: float) -> dict[str, float]:
        """The metrics since the last drain, over all processes; empty if nothing was added. Every process must call.

        `waited` is the source's running total of seconds. A mean over no token is left out, and so is what the kernel
        does not give. Raises Diverged if a negative log-likelihood is not finite.
        """
        if not self._parts:
            return {}
        now = time.perf_counter()
        host = torch.tensor([float(self._tokens), waited - self._waited], device=self._parts[0].device)
        sums = accelerator.reduce(torch.stack(self._parts).sum(0)).tolist()
        tokens, waits = accelerator.gather(host[None]).unbind(1)
        self.tokens += int(tokens.sum())
        self.wait_seconds += float(waits.max())
        seconds = now - self._since
        report = _report(dict(zip(self._names, sums, strict=True)))
        report |= {"wait_seconds": float(waits.max()), "wait_share": float(waits.max()) / seconds}
        report |= {"tokens_per_second": float(tokens.sum()) / seconds}
        report["num_tokens"] = float(self.tokens)
        self._parts, self._tokens, self._since, self._waited = [], 0, now, waited
        return report


def _report(s: dict[str, float]) -> dict[str, float]:
    if not math.isfinite(s["nll_pos"] + s["nll_neg"]):
        raise Diverged(f"the negative log-likelihood is {s['nll_pos'] + s['nll_neg']}: training has diverged")
    means = {
        "nll_pos": (s["nll_pos"], s["pos"]),
        "nll_neg": (s["nll_neg"], s["neg"]),
        "negative_share": (s["weight_neg"], s["weight_pos"] + s["weight_neg"]),
        "kept_share": (s["kept"], s["valid"]),
        "priority_mean": (s["weight_pos"] - s["weight_neg"], s["valid"]),
        "entropy": (s.get("entropy"), s["valid"]),
        "mean_token_accuracy": (s.get("correct"), s["valid"]),
    }
    return {name: total / number for name, (total, number) in means.items() if total is not None and number > 0}
