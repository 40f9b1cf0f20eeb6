"""Ways from hidden states and an lm head to the loss, weighted and plain, each one forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from tokenpriority.evidence import Evidence
from tokenpriority_trainer.head import WeightedHead
from tokenpriority_trainer.kernel import Shaping, charged
from tokenpriority_trainer.libraries import Library, logprobs
from tokenpriority_trainer.loss import count, weighted_loss

TRL_COLUMNS = 32_768
"""Columns of the vocabulary TRL projects at a time."""


@dataclass(frozen=True)
class Problem:
    """Hidden states (n, H), lm head (V, H), targets and signed weights (n,)."""

    hidden: Tensor
    head: Tensor
    targets: Tensor
    weights: Tensor

    @classmethod
    def random(cls, rows: int, width: int, vocabulary: int, *, zeros: float) -> Problem:
        """Weights of both signs; a share `zeros` of them 0."""
        torch.manual_seed(0)
        weights = torch.randn(rows)
        weights[torch.rand(rows) < zeros] = 0.0
        hidden, head = torch.randn(rows, width), torch.randn(vocabulary, width) * width**-0.5
        targets = torch.randint(0, vocabulary, (rows,))
        return cls(hidden.requires_grad_(), head.requires_grad_(), targets, weights)

    def on(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """The same numbers elsewhere, hidden states and lm head in another dtype; leaves of their own."""
        hidden, head = (each.detach().to(device, dtype).requires_grad_() for each in (self.hidden, self.head))
        return Problem(hidden, head, self.targets.to(device), self.weights.to(device))

    @property
    def counts(self) -> Tensor:
        """As the trainer counts a batch of one row."""
        labels = torch.nn.functional.pad(self.targets, (1, 0))[None]
        return count(labels, torch.nn.functional.pad(self.weights, (1, 0))[None], 1)


Way = Callable[[Problem], Tensor]


def nll(problem: Problem) -> Tensor:
    """Plain NLL of whole logits."""
    return torch.nn.functional.cross_entropy(problem.hidden @ problem.head.T, problem.targets)


def naive(problem: Problem) -> Tensor:
    """The weighted loss of whole logits."""
    logits = problem.hidden @ problem.head.T
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    each = torch.nn.functional.cross_entropy(logits, problem.targets, reduction="none")
    return (problem.weights * each).sum() / len(problem.weights)


def trl_nll(problem: Problem) -> Tensor:
    """Plain NLL from TRL's head, with the metrics TRL's trainer reads."""
    return -_trl(problem).mean()


def trl_weighted(problem: Problem) -> Tensor:
    """Our loss on TRL's head: the kernel `trl`."""
    logprob = _trl(problem)
    return weighted_loss(-logprob, logprob, problem.weights, problem.counts, denominator="all")


def chunked(problem: Problem) -> Tensor:
    """The kernel `chunked`, as `head.py` calls it but for rows of weight 0, which are dropped."""
    head = WeightedHead(problem.weights, _as_they_are, problem.counts, "ascent", "all")
    kept = problem.weights.nonzero()[:, 0]
    weights = problem.weights[kept]
    loss, _ = charged(
        problem.hidden.index_select(0, kept),
        problem.head,
        None,
        problem.targets[kept],
        lambda rows, logprob, entropy: head.loss(weights[rows], logprob, entropy),
    )
    return loss


def by_library(library: Library, problem: Problem) -> Tensor:
    """Our loss on a library's log-probs: the kernels `liger` and `cce`."""
    logprob, _ = logprobs(library, problem.hidden, problem.head, problem.targets, Shaping())
    return weighted_loss(-logprob, logprob, problem.weights, problem.counts, denominator="all")


def _as_they_are(static: Tensor, _: Evidence) -> Tensor:
    return static


def _trl(problem: Problem) -> Tensor:
    function: Any = ChunkedLogProbFunction
    found: Tensor = function.apply(
        problem.hidden, problem.head, None, problem.targets, 1.0, TRL_COLUMNS, None, 1.0, ("entropy", "is_top1")
    )[0]
    return found


WAYS: dict[str, Way] = {
    "nll, whole logits": nll,
    "weighted, whole logits": naive,
    "nll, TRL's head": trl_nll,
    "weighted, kernel trl": trl_weighted,
    "weighted, kernel chunked": chunked,
}
