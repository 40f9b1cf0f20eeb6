"""The chunked kernel against whole logits: float64 autograd, and the naive loss under the same autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenpriority.methods import Negatives
from tokenpriority_trainer.head import WeightedHead
from tokenpriority_trainer.kernel import Shaping, charged, scored
from whole_logits import COUNTS, WEIGHTS, naive

Leaves = tuple[Any, Any, Any]
"""Hidden states, lm head, bias or None."""


def leaves(n: int, vocabulary: int, *, bias: bool, seed: int = 0, width: int = 6) -> Leaves:
    """Small enough that no probability comes near 1, where float32 itself has few digits of 1 - p."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, offset = (
        torch.randn(size, generator=generator) for size in ((n, width), (vocabulary, width), (vocabulary,))
    )
    return (0.3 * hidden).requires_grad_(), weight.requires_grad_(), offset.requires_grad_() if bias else None


def in_float64(tensors: Leaves) -> Leaves:
    hidden, weight, offset = (None if each is None else each.detach().double().requires_grad_() for each in tensors)
    return hidden, weight, offset


def whole(tensors: Leaves, shaping: Shaping | None = None) -> Tensor:
    shaping = shaping or Shaping()
    logits = torch.nn.functional.linear(*tensors) * shaping.scale
    return logits if shaping.cap is None else shaping.cap * torch.tanh(logits / shaping.cap)


def weighted(weights: Tensor, negatives: Negatives, *, by_sign: bool = False) -> Any:
    """The charge of the trainer's loss for static weights (n,)."""
    head = WeightedHead(weights, lambda static, _: static, COUNTS, negatives, "by_sign" if by_sign else "all")
    return lambda rows, logprob, entropy: head.loss(weights[rows], logprob, entropy)


def assert_gradients(found: Leaves, expected: Leaves, bound: float = 1e-5) -> None:
    """Gradients equal, measured by the largest entry of all."""
    pairs = [(mine.grad, truth.grad.double()) for mine, truth in zip(found, expected, strict=True) if truth is not None]
    size = max([1e-3, *(truth.abs().max().item() for _, truth in pairs if truth.numel())])
    for mine, truth in pairs:
        torch.testing.assert_close(mine.double() / size, truth / size, rtol=0, atol=bound)


@given(
    n=st.integers(0, 23),
    vocabulary=st.integers(2, 40),
    size=st.integers(1, 25),
    bias=st.booleans(),
    shaping=st.builds(Shaping, st.sampled_from([1.0, 0.3]), st.sampled_from([None, 4.0])),
    negatives=st.sampled_from(["unlikelihood", "ascent"]),
    by_sign=st.booleans(),
    empty=st.integers(0, 23),
    seed=st.integers(0, 9),
)
def test_loss_and_gradients_are_those_of_whole_logits_in_float64(
    n: int,
    vocabulary: int,
    size: int,
    bias: bool,
    shaping: Shaping,
    negatives: Negatives,
    by_sign: bool,
    empty: int,
    seed: int,
) -> None:
    mine = leaves(n, vocabulary, bias=bias, seed=seed)
    truth = in_float64(mine)
    targets = torch.arange(n) * 7 % vocabulary
    weights = torch.tensor([0.0 if i < empty else WEIGHTS[(i + seed) % 7] for i in range(n)])
    loss, _ = charged(*mine, targets, weighted(weights, negatives, by_sign=by_sign), shaping, size)
    (3 * loss).backward()
    up, down = (20, 10) if by_sign else (40, 40)
    expected = naive(whole(truth, shaping), targets, weights.double(), negatives, up, down)
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert_gradients(mine, truth)


@given(n=st.integers(0, 23), vocabulary=st.integers(2, 40), size=st.integers(1, 25), seed=st.integers(0, 9))
def test_scores_are_those_of_the_distribution(n: int, vocabulary: int, size: int, seed: int) -> None:
    mine, shaping = leaves(n, vocabulary, bias=True, seed=seed), Shaping(0.5, 4.0)
    targets = torch.arange(n) * 5 % vocabulary
    logprobs = torch.log_softmax(whole(in_float64(mine), shaping).detach(), -1)
    _, beside = charged(*mine, targets, lambda _rows, logprob, _entropy: -logprob.sum(), shaping, size)
    for found in (beside, scored(*mine, targets, shaping, size)):
        picked = logprobs.gather(-1, targets[:, None])[:, 0]
        torch.testing.assert_close(found.logprob.double(), picked, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.entropy.double(), -(logprobs.exp() * logprobs).sum(-1), rtol=0, atol=1e-5)
        assert found.is_top1.tolist() == (logprobs.argmax(-1) == targets).tolist()
        assert not found.logprob.requires_grad


def test_a_tie_goes_to_the_first_token_as_in_trls_head() -> None:
    hidden, weight = torch.ones(3, 1), torch.tensor([[1.0], [2.0], [2.0]])
    assert scored(hidden, weight, None, torch.tensor([0, 1, 2])).is_top1.tolist() == [False, True, False]


def test_any_charge_to_the_last_digits_of_float64() -> None:
    mine = in_float64(leaves(11, 9, bias=True))
    truth = in_float64(mine)
    targets, rates = torch.arange(11) % 9, torch.linspace(-2, 2, 11, dtype=torch.float64)
    loss, _ = charged(*mine, targets, lambda rows, logprob, _: (rates[rows] * logprob.sin()).sum(), rows=4)
    loss.backward()
    logprob = torch.log_softmax(whole(truth), -1).gather(-1, targets[:, None])[:, 0]
    (rates * logprob.sin()).sum().backward()
    assert_gradients(mine, truth, bound=1e-13)


def test_a_frozen_lm_head_gets_no_gradient_and_hidden_states_the_same() -> None:
    both, frozen = leaves(9, 12, bias=True), leaves(9, 12, bias=True)
    for each in frozen[1:]:
        each.requires_grad_(False)
    for tensors in (both, frozen):
        loss, _ = charged(*tensors, torch.arange(9), lambda _rows, logprob, _entropy: -logprob.sum(), rows=4)
        loss.backward()
    assert [each.grad for each in frozen[1:]] == [None, None]
    torch.testing.assert_close(frozen[0].grad, both[0].grad)


def test_a_second_backward_pass_is_refused_rather_than_wrong() -> None:
    loss, _ = charged(*leaves(3, 5, bias=False), torch.arange(3), lambda _rows, logprob, _entropy: -logprob.sum())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_under_bfloat16_autocast_gradients_are_within_two_percent_of_the_naive_ones() -> None:
    mine, theirs = leaves(64, 300, bias=True, width=32), leaves(64, 300, bias=True, width=32)
    targets, weights = torch.arange(64) * 5 % 300, torch.tensor(WEIGHTS * 10)[:64]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = charged(*mine, targets, weighted(weights, "unlikelihood"), rows=24)
        expected = naive(whole(theirs).float(), targets, weights, "unlikelihood", 40, 40)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    assert_gradients(mine, theirs, bound=0.02)
