from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenpriority.methods import Denominator, Negatives
from tokenpriority_trainer.loss import FLOOR, count, penalty, unlikelihood, weighted_loss

DENOMINATORS: tuple[Denominator, ...] = get_args(Denominator)
WEIGHTS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=12)


def logits_and_labels(length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(length, 7, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(7, (length,), generator=generator)


def logprob_of(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1).gather(-1, labels[:, None])[:, 0][None]


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


def weighted(
    weights: list[float], denominator: Denominator = "all", negatives: Negatives = "unlikelihood", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The loss of a row with these weights and its gradient on the logits."""
    logits, labels = logits_and_labels(len(weights), seed)
    row = torch.tensor([[0.0, *weights]])
    counts = count(torch.cat([torch.zeros(1, dtype=torch.long), labels])[None], row, 3)
    logprob = logprob_of(logits, labels)
    loss = weighted_loss(-logprob, penalty(logprob, negatives), row[:, 1:], counts, denominator=denominator)
    return loss, gradient(loss, logits)


@given(WEIGHTS, st.sampled_from(DENOMINATORS), st.sampled_from(get_args(Negatives)), st.integers(0, 100))
def test_loss_is_the_equation_summed_token_by_token(
    weights: list[float], denominator: Denominator, negatives: Negatives, seed: int
) -> None:
    logits, labels = logits_and_labels(len(weights), seed)
    p = np.exp(logprob_of(logits, labels).detach().numpy()[0])
    positive = sum(w * -math.log(x) for w, x in zip(weights, p, strict=True) if w > 0)
    charge = (lambda x: -math.log(1 - x)) if negatives == "unlikelihood" else math.log
    negative = sum(-w * charge(x) for w, x in zip(weights, p, strict=True) if w < 0)
    n_pos, n_neg = sum(w > 0 for w in weights), sum(w < 0 for w in weights)
    d_pos, d_neg = {
        "all": (len(weights), len(weights)),
        "kept": (n_pos + n_neg, n_pos + n_neg),
        "by_sign": (n_pos, n_neg),
        "sequences": (3, 3),
    }[denominator]
    expected = positive / max(d_pos, 1) + negative / max(d_neg, 1)
    loss, _ = weighted(weights, denominator, negatives, seed)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(WEIGHTS)
def test_ascent_of_minus_one_is_minus_the_gradient_of_plus_one(weights: list[float]) -> None:
    positive = [abs(w) for w in weights]
    _, up = weighted([-w for w in positive], negatives="ascent")
    _, down = weighted(positive)
    torch.testing.assert_close(up, -down)


def test_unlikelihood_is_float64s_naive_formula_in_value_and_gradient() -> None:
    logprob = torch.log(
        torch.tensor([1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.99, 0.999, 1 - 2 * FLOOR], dtype=torch.float64)
    )
    ours, naive = logprob.clone().requires_grad_(), logprob.clone().requires_grad_()
    value = unlikelihood(ours)
    expected = -torch.log(1 - torch.exp(naive))
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient(value.sum(), ours), gradient(expected.sum(), naive), rtol=5e-3, atol=1e-12)


def test_unlikelihood_of_a_token_the_model_is_certain_of_is_finite_and_still_pushes() -> None:
    logprob = torch.tensor([0.0, -1e-30, -1e-9, 1e-7, -0.5 * FLOOR], requires_grad=True)
    value = unlikelihood(logprob)
    slope = gradient(value.sum(), logprob)
    assert torch.isfinite(value).all()
    assert (value <= 1 - math.log(FLOOR) + 0.02).all()
    assert (slope > 0.9 / FLOOR).all()
    assert (slope < 1.1 / FLOOR).all()


def test_unlikelihood_has_no_step_where_the_tangent_takes_over() -> None:
    rest = torch.tensor([FLOOR * (1 - 1e-3), FLOOR * (1 + 1e-3)], dtype=torch.float64)
    logprob = torch.log1p(-rest).requires_grad_()
    below, above = unlikelihood(logprob)
    assert below.item() == pytest.approx(above.item(), abs=0.02)
    slopes = gradient(below + above, logprob)
    assert slopes[0].item() == pytest.approx(slopes[1].item(), rel=0.02)


def test_unlikelihoods_gradient_on_the_logit_is_the_probability_whatever_the_certainty() -> None:
    for logit in (-20.0, -2.0, 0.0, 2.0, 8.0):
        logits = torch.tensor([[logit, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        labels = torch.zeros(1, dtype=torch.long)
        slope = gradient(unlikelihood(logprob_of(logits, labels)).sum(), logits)[0, 0]
        assert slope.item() == pytest.approx(torch.softmax(logits, -1)[0, 0].item(), rel=5e-3)


def test_weights_take_no_gradient_and_no_dtype_of_theirs_matters() -> None:
    logits, labels = logits_and_labels(3)
    weights = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.bfloat16, requires_grad=True)
    counts = torch.tensor([3, 3, 2, 1, 1])
    logprob = logprob_of(logits, labels)
    loss = weighted_loss(-logprob, unlikelihood(logprob), weights, counts, denominator="all")
    loss.backward()
    assert weights.grad is None
    assert logits.grad is not None


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_micro_batch_without_weights_gives_a_differentiable_zero(denominator: Denominator) -> None:
    loss, slope = weighted([0.0, 0.0], denominator)
    assert loss.item() == 0
    assert (slope == 0).all()


def test_ignored_positions_cannot_poison_the_loss() -> None:
    # TRL's fused head gives log-probability 0, p = 1, where the label is ignored.
    logprob = torch.tensor([[-1.0, 0.0]], requires_grad=True)
    weights, counts = torch.tensor([[-1.0, 0.0]]), torch.tensor([1, 1, 0, 1, 1])
    loss = weighted_loss(-logprob, unlikelihood(logprob), weights, counts, denominator="all")
    slope = gradient(loss, logprob)
    assert torch.isfinite(slope).all()
    assert slope[0, 1] == 0


def test_counts_are_of_shifted_labels_and_weights() -> None:
    labels = torch.tensor([[5, -100, 7, 8, 9], [1, 2, -100, 4, -100]])
    priorities = torch.tensor([[9.0, 0.0, 1.0, -2.0, 0.0], [9.0, 0.5, 0.0, -1.0, 0.0]])
    assert count(labels, priorities, 2).tolist() == [5, 4, 2, 2, 2]


def test_a_charge_that_is_not_finite_does_no_harm_where_nothing_is_trained() -> None:
    charge = torch.tensor([[2.0, math.inf, math.nan]], requires_grad=True)
    weights, counts = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([1, 1, 1, 0, 1])
    loss = weighted_loss(charge, charge, weights, counts, denominator="all")
    assert loss.item() == 2
    assert gradient(loss, charge).tolist() == [[1, 0, 0]]
