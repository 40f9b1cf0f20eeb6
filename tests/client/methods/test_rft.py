"""RFT against a plain loop, and its weights against the loss as its authors write it."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat.torch as xp_torch
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from agreement import Loop, Row, agree, micro_batches, traced
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise

Weights = list[list[float]]


def loop_rft(rows: list[Row], p: dict[str, Any]) -> Weights:
    groups: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for number, row in enumerate(rows):
        for i in row.wanted:
            shuffled, original = -row.logprob("reference")[i], -row.logprob("base")[i]
            groups[shuffled - original <= 0].append((number, i))
    present = [places for places in groups.values() if places]
    means = [sum(-rows[number].logprob("student")[i] for number, i in places) / len(places) for places in present]
    powers = [math.exp((mean - max(means)) / p["tau"]) for mean in means]
    wanted = sum(len(places) for places in present)
    out = [[0.0] * len(row) for row in rows]
    for places, power in zip(present, powers, strict=True):
        for number, i in places:
            out[number][i] = power / sum(powers) * wanted / len(places)
    return out


CASES: list[tuple[str, dict[str, Any], Loop]] = [("rft", {"tau": 0.5}, loop_rft), ("rft", {"tau": 3.0}, loop_rft)]


@pytest.mark.parametrize(("name", "params", "loop"), CASES)
@settings(max_examples=40, deadline=None)
@given(rows=micro_batches())
def test_formula_equals_plain_loop(name: str, params: dict[str, Any], loop: Loop, rows: list[Row]) -> None:
    agree(name, params, loop, rows)


def test_body_is_traced_whole() -> None:
    traced("rft", {"tau": 1.0})


def test_gradient_is_that_of_the_two_weighted_mean_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator)
    ids = torch.randint(7, (2, 5), generator=generator)
    mask = torch.tensor([[False, True, True, True, True], [False, True, True, False, False]])
    boilerplate = torch.tensor([[False, True, False, False, True], [True, False, True, True, False]])
    base = torch.full((2, 5), -2.0, dtype=torch.float64)
    reference = base + torch.where(boilerplate, 0.5, -0.5)

    def gradient(weighted: bool) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        nll = -torch.log_softmax(leaf, -1).gather(-1, ids[..., None])[..., 0]
        if weighted:
            method = get_method("rft")
            inputs = Inputs(mask, Evidence(reference), Evidence(base), Evidence(-nll.detach()))
            weights = prioritise(method, method.parse({"tau": 0.7}), inputs, xp=xp_torch)
            loss = (weights * nll).sum() / mask.sum()
        else:
            losses = torch.stack([nll[mask & boilerplate].mean(), nll[mask & ~boilerplate].mean()])
            loss = (torch.softmax(losses.detach() / 0.7, 0) * losses).sum()
        loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tau", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("student", [[0.0, 0.0, 0.0], [0.0, -100.0, -1e5], [-1e5, 0.0, -(2.0**-24)]])
def test_the_hardest_losses_and_temperatures_leave_the_weights_finite(tau: float, student: list[float]) -> None:
    def evidence(values: list[float]) -> Evidence:
        return Evidence(np.array([np.nan, *values], np.float32))

    method = get_method("rft")
    inputs = Inputs(
        np.array([False, True, True, True]),
        evidence([-1.0, -2.0, -2.0]),
        evidence([-2.0, -1.0, -2.0]),
        evidence(student),
    )
    weights = prioritise(method, method.parse({"tau": tau}), inputs, xp=np)
    assert weights.dtype == np.float32
    assert np.isfinite(weights).all()
    assert float(weights.sum()) == pytest.approx(3.0)  # omega sums to 1, each group's weights to omega N
