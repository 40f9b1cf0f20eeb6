"""Unlearning weights against the losses their authors write: the gradients are the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp_torch
import pytest
import torch

from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise

Given = dict[str, Any]

# Rows of 6, 4 and 2 scored tokens; labels of +1 and -1, and tokens without any.

IDS = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0]], dtype=torch.bool)
LABELS = torch.tensor(
    [[0, -1, math.nan, -1, -1, 1, 1], [0, math.nan, -1, 1, math.nan, 0, 0], [0, -1, 0, math.nan, 0, 0, 0]],
    dtype=torch.float64,
)
FORGET, RETAIN = MASK & (LABELS < 0), MASK & ~(LABELS < 0)


def picked(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1).gather(-1, IDS[..., None])[..., 0]


def drawn(seed: int) -> torch.Tensor:
    """Logits under which the tokens are likely enough to be worth forgetting."""
    logits = 2 * torch.randn(3, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return logits.scatter_add(-1, IDS[..., None], torch.full((3, 7, 1), 4.0, dtype=torch.float64))


REFERENCE = -picked(drawn(2))


def each(nll: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Sum over each row's tokens."""
    return torch.where(where, nll, 0.0).sum(-1)


def npo(nll: torch.Tensor, where: torch.Tensor, beta: float) -> torch.Tensor:
    return -(2 / beta) * torch.nn.functional.logsigmoid(beta * (each(nll, where) - each(REFERENCE, where))).mean()


def simnpo(nll: torch.Tensor, where: torch.Tensor, beta: float, delta: float) -> torch.Tensor:
    mean = each(nll, where) / where.sum(-1)
    return -torch.nn.functional.logsigmoid(beta * (mean - delta)).mean() * 2 / beta


def weighted(factor: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """-mean(sg(factor(p, q)) nll) over the scored tokens."""
    return lambda nll: -(factor((-nll).exp().detach(), (-REFERENCE).exp()) * nll)[MASK].mean()


LOSSES: list[tuple[str, Given, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("ga", {}, lambda nll: -nll[MASK].mean()),
    (
        "graddiff",
        {"gamma": 0.75, "retain": 2.0},
        lambda nll: -0.75 * nll[FORGET].mean() + 2 * nll[RETAIN].mean(),
    ),
    ("wga", {}, weighted(lambda p, q: p**5)),
    ("satimp", {}, weighted(lambda p, q: p**5 * (1 - p))),
    ("npo", {}, lambda nll: npo(nll, MASK, 0.1)),
    (
        "npo",
        {"beta": 0.5, "forget": "labelled", "retain": 2.0},
        lambda nll: npo(nll, FORGET, 0.5) + 2 * (each(nll, RETAIN) / RETAIN.sum(-1)).mean(),
    ),
    ("simnpo", {}, lambda nll: simnpo(nll, MASK, 2.5, 0.0)),
    (
        "simnpo",
        {"beta": 4.5, "delta": 1.5, "forget": "labelled", "retain": 8.0},
        lambda nll: simnpo(nll, FORGET, 4.5, 1.5) + 8 * (each(nll, RETAIN) / RETAIN.sum(-1)).mean(),
    ),
    ("tnpo", {}, weighted(lambda p, q: 2 * p**4 / (p**4 + q**4 + 1e-5))),
    ("wtnpo", {}, weighted(lambda p, q: 2 * p**5.5 / (p**4 + q**4 + 1e-5))),
]


@pytest.mark.parametrize(("name", "params", "loss"), LOSSES)
def test_gradient_is_that_of_the_authors_loss(
    name: str, params: Given, loss: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    method = get_method(name)

    def by_weight(nll: torch.Tensor) -> torch.Tensor:
        """The sum of |w| log p where w < 0 and of w nll where w > 0, over the method's denominator."""
        student, reference = Evidence(-nll.detach()), Evidence(-REFERENCE)
        inputs = Inputs(MASK, reference=reference, student=student, labels=LABELS)
        weights: torch.Tensor = prioritise(method, method.parse(params), inputs, xp=xp_torch)
        positive, negative = torch.relu(weights) * nll, torch.relu(-weights) * -nll
        counts = {"all": (MASK, MASK), "sequences": (MASK.any(-1),) * 2, "by_sign": (weights > 0, weights < 0)}
        up, down = counts[method.denominator]
        return positive.sum() / up.sum() + negative.sum() / down.sum().clamp(min=1)

    def gradient(of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        leaf = drawn(3).requires_grad_()
        of(-picked(leaf)).backward()
        assert leaf.grad is not None
        return leaf.grad

    got = gradient(by_weight)
    assert got.abs().max() > 1e-3
    torch.testing.assert_close(got, gradient(loss), rtol=1e-10, atol=1e-14)
