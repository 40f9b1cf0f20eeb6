"""Methods over whole distributions against their formulas, token by token: values everywhere, gradients by autograd."""

from __future__ import annotations

import math

import array_api_compat.torch as xp_torch
import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tokenpriority.methods import Inputs, Role, get_method
from whole import PLAIN, ROLES, Batch, Given, Naive, Token, batches, computed, naive, strict


def naive_gem(token: Token, p: Given) -> Tensor:
    z: Tensor = token.z["student"]
    q = torch.softmax(z.detach() / p.get("beta", 0.7), 0)
    h = torch.sigmoid(0.01 * (z - z[token.y])).detach() if p.get("h", "logsigmoid") == "logsigmoid" else 1.0
    log_p = token.log_p()
    loss: Tensor = -(q * h * (log_p[token.y] - log_p)).sum()
    return loss


def naive_asft(token: Token, p: Given) -> Tensor:
    log_p, q = token.log_p(), token.log_p("reference").exp()
    kl = torch.nn.functional.kl_div(log_p, q, reduction="sum")
    loss: Tensor = -log_p[token.y].exp().detach() * log_p[token.y] + p.get("kl", 0.05) * kl
    return loss


def forget_or_retain(push: Tensor, token: Token, p: Given) -> Tensor:
    """The rule of every unlearning method."""
    if p.get("forget", "all") == "all":
        return push
    strength = 1.0 if math.isnan(token.label) else abs(token.label)
    if token.label < 0:
        return strength * push
    retained: Tensor = -strength * p.get("retain", 1.0) * token.log_p()[token.y]
    return retained


def naive_undial(token: Token, p: Given) -> Tensor:
    lowered = token.z["reference"].clone()
    lowered[token.y] -= p.get("beta", 10.0)
    push = torch.nn.functional.cross_entropy(token.z["student"][None], torch.softmax(lowered, 0)[None])
    return forget_or_retain(push, token, p)


def naive_ce_u(token: Token, p: Given) -> Tensor:
    without = token.z["student"].detach().clone()
    without[token.y] = -math.inf
    push = torch.nn.functional.cross_entropy(token.z["student"][None], torch.softmax(without, 0)[None])
    if token.nth <= p.get("skip", 1):
        push = push * 0
    return forget_or_retain(push, token, p)


def naive_unlikelihood(token: Token, p: Given) -> Tensor:
    log_p = token.log_p()
    loss = -log_p[token.y]
    for c in set(token.before) - {token.y}:
        # 1 - p(c) as the probability of all others, which does not cancel near p(c) = 1.
        others = torch.cat([log_p[:c], log_p[c + 1 :]]).exp().sum()
        loss = loss - p.get("alpha", 1.0) * torch.log(torch.clamp(others, min=1e-5))
    return loss


def naive_cdpo(token: Token, p: Given) -> Tensor:
    if p.get("side", "rejected") == "chosen" and not p.get("weigh_chosen"):
        return torch.ones((), dtype=torch.float64)
    c = p.get("contrast", 1.0)
    contrast = torch.softmax((1 + c) * token.z["reference"] - c * token.z["base"], 0)
    if p.get("side", "rejected") == "chosen":
        return contrast[token.y]
    return -(torch.cat([contrast[: token.y], contrast[token.y + 1 :]]).sum())


CASES: list[tuple[str, Given, Naive]] = [
    ("gem", {}, naive_gem),
    ("gem", {"h": "linear"}, naive_gem),
    ("gem", {"beta": 1.0, "h": "linear"}, naive_gem),
    ("asft", {}, naive_asft),
    ("asft", {"kl": 2.0}, naive_asft),
    ("undial", {}, naive_undial),
    ("undial", {"beta": 0.0}, naive_undial),
    ("undial", {"beta": 3.0, "forget": "labelled", "retain": 0.5}, naive_undial),
    ("ce_u", {}, naive_ce_u),
    ("ce_u", {"skip": 0}, naive_ce_u),
    ("ce_u", {"skip": 2, "forget": "labelled"}, naive_ce_u),
    ("unlikelihood", {}, naive_unlikelihood),
    ("unlikelihood", {"alpha": 0.25}, naive_unlikelihood),
]
WEIGHTS: list[tuple[str, Given, Naive]] = [
    ("cdpo", {}, naive_cdpo),
    ("cdpo", {"side": "chosen"}, naive_cdpo),
    ("cdpo", {"side": "chosen", "weigh_chosen": True}, naive_cdpo),
    ("cdpo", {"contrast": 0.25}, naive_cdpo),
]
NAMED = [(name, params) for name, params, _ in (*CASES, *WEIGHTS)]


@pytest.mark.parametrize(("name", "params", "each"), [*CASES, *WEIGHTS])
@settings(max_examples=25, deadline=None)
@given(batch=batches())
def test_values_are_the_formulas(name: str, params: Given, each: Naive, batch: Batch) -> None:
    expected = naive(batch, params, each).numpy()
    for xp, convert in ((np, Tensor.numpy), (xp_torch, lambda v: v), (array_api_strict, strict)):
        got = np.from_dlpack(computed(name, params, batch.inputs(convert), xp))
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
        assert not got[~batch.mask.numpy()].any()
    first = Inputs(batch.mask[0], token_ids=batch.token_ids[0], labels=batch.labels[0], logits=_first(batch))
    np.testing.assert_allclose(computed(name, params, first, xp_torch), expected[0], rtol=1e-9, atol=1e-9)


def _first(batch: Batch) -> dict[Role, Tensor]:
    return {role: values[0] for role, values in batch.logits.items()}


@pytest.mark.parametrize(("name", "params", "each"), CASES)
@settings(max_examples=25, deadline=None)
@given(batch=batches())
def test_gradients_are_the_formulas(name: str, params: Given, each: Naive, batch: Batch) -> None:
    """With a factor of its own for each token, and nothing through frozen models or masked-out rows."""
    for values in batch.logits.values():
        values.requires_grad_()
    factors = torch.linspace(0.5, 2.0, batch.mask.numel(), dtype=torch.float64).reshape(batch.mask.shape)
    student = batch.logits["student"]
    got = computed(name, params, batch.inputs(), xp_torch)
    if not got.requires_grad:  # nobody wanted and the loss a constant
        assert not batch.mask.any()
        return
    (got * factors).sum().backward()
    found = student.grad
    assert found is not None
    assert batch.logits["reference"].grad is None
    assert batch.logits["base"].grad is None
    loss = (naive(batch, params, each) * factors).sum()
    expected = torch.autograd.grad(loss, student)[0] if loss.requires_grad else torch.zeros_like(student)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert not found[~batch.mask].any()


@pytest.mark.parametrize(("name", "params", "each"), [*CASES, *WEIGHTS])
def test_single_precision_is_near(name: str, params: Given, each: Naive) -> None:
    inputs = PLAIN.inputs(lambda values: values.float() if values.is_floating_point() else values)
    got = computed(name, params, inputs, xp_torch)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), naive(PLAIN, params, each), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "params"), NAMED)
def test_what_is_masked_out_reaches_neither_loss_nor_gradient(name: str, params: Given) -> None:
    """NaN logits and ids of -100 where nothing is wanted; a row nobody wants is exactly 0."""
    logits = {role: values.clone() for role, values in PLAIN.logits.items()}
    mask, ids = PLAIN.mask.clone(), PLAIN.token_ids.clone()
    mask[1] = False
    ids[1] = -100
    for values in logits.values():
        values[~mask] = math.nan
        values.requires_grad_()
    batch = Batch(logits, ids, mask, PLAIN.labels)
    got = computed(name, params, batch.inputs(), xp_torch)
    assert (got[~mask] == 0).all()
    torch.testing.assert_close(got[0], computed(name, params, PLAIN.inputs(), xp_torch)[0])
    if got.requires_grad:
        got.sum().backward()
        found = logits["student"].grad
        assert found is not None
        assert found.isfinite().all()
        assert (found[~mask] == 0).all()


@pytest.mark.parametrize(("name", "params"), NAMED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("peak", [0, 1, 2])
def test_extreme_and_impossible_logits_stay_finite(name: str, params: Given, dtype: torch.dtype, peak: int) -> None:
    """p -> 1 on the label (1), a token said before (0) or another (2), by 2e4 nats; a token no model can say."""
    row = torch.full((5,), -1e4, dtype=dtype)
    row[peak], row[4] = 1e4, -math.inf
    logits: dict[Role, Tensor] = {role: row.repeat(1, 3, 1).requires_grad_() for role in ROLES}
    mask = torch.tensor([[False, True, True]])
    batch = Batch(logits, torch.tensor([[0, 1, 1]]), mask, torch.full((1, 3), math.nan, dtype=dtype))
    got = computed(name, params, batch.inputs(), xp_torch)
    assert got.isfinite().all()
    if got.requires_grad:
        got.sum().backward()
        found = logits["student"].grad
        assert found is not None
        assert found.isfinite().all()


@pytest.mark.parametrize(("name", "params"), NAMED)
def test_body_is_traced_whole(name: str, params: Given) -> None:
    method = get_method(name)
    parsed = method.parse(params)
    inputs = PLAIN.inputs()

    def run(inputs: Inputs) -> Tensor:
        values: Tensor = method.body(inputs, parsed, xp=xp_torch)
        return values

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="eager", fullgraph=True)(inputs), run(inputs))
