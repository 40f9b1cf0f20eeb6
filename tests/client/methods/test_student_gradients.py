"""Gradients of the live student's methods: each authors' loss, as they write it, against weight * NLL.

For any loss f(p) of a token's probability the gradient is p f'(p) times that of log p, so the weight on the NLL is
w(p) = -p f'(p); exponents and weights the authors detach are detached here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp_torch
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise

ROWS, LENGTH, VOCABULARY = 3, 9, 40


class Batch:
    """Random logits (R, T, V), some sharp and some flat, labels and a mask; float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        sharp = torch.linspace(0.2, 9, ROWS * LENGTH, dtype=torch.float64).reshape(ROWS, LENGTH, 1)
        noise = torch.randn(ROWS, LENGTH, VOCABULARY, generator=generator, dtype=torch.float64)
        self.logits = (noise * sharp).requires_grad_()
        rank = torch.randint(0, 3, (ROWS, LENGTH, 1), generator=generator)
        self.labels = self.logits.detach().argsort(-1, descending=True).gather(-1, rank)[..., 0]
        self.mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.8
        self.mask[:, 0] = False
        self.log_p = log_softmax(self.logits, -1).gather(-1, self.labels[..., None])[..., 0]
        self.p = self.log_p.exp()
        self.nll = cross_entropy(self.logits.mT, self.labels, reduction="none")
        self.old = self.log_p.detach() + 0.4 * torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64)

    def evidence(self) -> Evidence:
        logits = self.logits.detach()
        q = softmax(logits, -1)
        own = q.gather(-1, self.labels[..., None])
        best20 = softmax(logits.topk(20).values, -1)
        return Evidence(
            logprob=own.log()[..., 0],
            entropy=-(q * q.log()).sum(-1),
            top1_logprob=q.amax(-1).log(),
            rank=1 + (q > own).sum(-1).double(),
            entropy_top20=-(best20 * best20.log()).sum(-1),
            collision=(q**2).sum(-1),
        )


Loss = Callable[[Batch], Tensor]
"""The loss of each token, (R, T), before the mask."""


def deft(b: Batch) -> Tensor:
    alpha = softmax(b.logits, -1).pow(2).sum(-1).detach()
    return -(torch.exp(alpha * b.log_p) - 1) / (alpha + 1e-6)


def cayley(b: Batch) -> Tensor:
    p = b.p.detach()
    floor = 0.5 * p[b.mask].mean()
    d = 1 - p
    alpha = (floor + (1 - floor) * (1 - d) / (1 + d)).clamp(0.001, 1.0)
    return -(torch.exp(alpha * b.log_p) - 1) / (alpha + 1e-8)


def focal(b: Batch) -> Tensor:
    weight = (1 - b.p.detach()) ** 2
    return weight / weight[b.mask].mean() * b.nll


def mile(b: Batch) -> Tensor:
    entropy: Tensor = torch.distributions.Categorical(logits=b.logits.detach()).entropy()
    return (1 + entropy) / (1 + entropy)[b.mask].mean() * b.nll


def talr(b: Batch) -> Tensor:
    tau = torch.stack([row[m].mean() for row, m in zip(b.nll.detach(), b.mask, strict=True)]).median()
    return (b.p.detach().clamp(1e-6) ** (1 / tau)).clamp(min=0.01) * b.nll


def infosft(b: Batch) -> Tensor:
    logit = torch.logit(b.p.detach())
    return -b.p.detach() * torch.relu(1 - logit / math.log(0.93 / 0.07)) * b.log_p


def eaft(b: Batch) -> Tensor:
    entropy: Tensor = torch.distributions.Categorical(logits=b.logits.detach().topk(20).values).entropy()
    return entropy / 3.0 * b.nll


def ranktuner(b: Batch) -> Tensor:
    logits = b.logits.detach()
    rank = (logits >= logits.gather(-1, b.labels[..., None])).sum(-1)  # no ties here
    bits = torch.distributions.Categorical(logits=logits).entropy() / math.log(2)
    expected = torch.where(bits >= 2, 0.25 * 2**bits + 1, 1 + (1 - softmax(logits, -1).amax(-1)))
    k = 1 / torch.log2(torch.maximum(expected, rank) + 1) ** 2
    return b.p.detach() * (b.p.detach() * expected).clamp_min(1e-6) ** -k * b.nll


def psft(b: Batch) -> Tensor:
    ratio = torch.exp((b.log_p - b.old).clamp(-20, 20))
    return -torch.minimum(ratio, ratio.clamp(0.8, 1.28))


LOSSES: list[tuple[str, dict[str, Any], Loss]] = [
    ("dft", {}, lambda b: -b.p.detach() * b.log_p),
    ("dft", {}, lambda b: 1 - b.p),
    ("bll", {}, lambda b: 1 - b.p),
    ("bll", {"alpha": 10.0}, lambda b: (1 - b.p**10) / 10),
    ("bll", {"alpha": 0.1}, lambda b: (1 - b.p**0.1) / 0.1),
    ("bll_threshold", {"side": "top", "tau": 0.2}, lambda b: (1 - b.p) * (b.p >= 0.2)),
    ("bll_threshold", {"side": "bottom", "tau": 0.2}, lambda b: (1 - b.p) * (b.p <= 0.2)),
    ("bll_threshold", {"side": "top", "tau": 0.2, "weight": "one"}, lambda b: b.nll * (b.p >= 0.2)),
    ("bll_threshold", {"side": "bottom", "tau": 0.2, "weight": "one"}, lambda b: b.nll * (b.p <= 0.2)),
    ("deft", {}, deft),
    ("cayley", {}, cayley),
    ("focal", {"gamma": 2.0}, focal),
    ("talr", {}, talr),
    ("profit", {}, lambda b: b.nll * (b.p >= 0.1)),
    ("infosft", {}, infosft),
    ("eaft", {}, eaft),
    ("mile", {}, mile),
    ("ranktuner", {}, ranktuner),
    ("psft", {}, psft),
]


@pytest.mark.parametrize(("name", "params", "loss"), LOSSES)
def test_gradient_is_that_of_the_authors_loss(name: str, params: dict[str, Any], loss: Loss) -> None:
    batch = Batch()
    method = get_method(name)
    inputs = Inputs(batch.mask, student=batch.evidence(), old=Evidence(logprob=batch.old))
    weights = prioritise(method, method.parse(params), inputs, xp=xp_torch)
    assert not weights.requires_grad
    (theirs,) = torch.autograd.grad(loss(batch)[batch.mask].sum(), batch.logits, retain_graph=True)
    (ours,) = torch.autograd.grad((weights * batch.nll).sum(), batch.logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert theirs.abs().max() > 1e-3


def test_the_batch_reaches_both_sides_of_every_branch() -> None:
    batch = Batch()
    p = batch.p.detach()[batch.mask]
    for edge in (0.1, 0.2, 0.93):
        assert (p < edge).any()
        assert (p > edge).any()
    bits = batch.evidence().signal("entropy")[batch.mask] / math.log(2)
    assert (bits < 2).any()
    assert (bits > 2).any()
    ratio = torch.exp(batch.log_p.detach() - batch.old)[batch.mask]
    assert (ratio < 0.8).any()
    assert (ratio > 1.28).any()
