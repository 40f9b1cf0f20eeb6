"""What the methods over whole distributions promise beyond their formulas: identities, sets, bounds and refusals."""

from __future__ import annotations

import math

import array_api_compat.torch as xp_torch
import numpy as np
import pytest
import torch
from torch import Tensor

from tokenpriority.errors import EngineFault, InvalidParameter
from tokenpriority.methods import Inputs, get_method
from whole import PLAIN, ROLES, Batch, computed

METHODS = ("gem", "asft", "undial", "ce_u", "unlikelihood", "cdpo")


def one(logits: list[float], ids: list[int], *, base: list[float] | None = None) -> Inputs:
    """A sequence every token of which is predicted by the same logits, under every model but perhaps the base."""
    row = np.tile(np.array(logits), (len(ids), 1))
    every = dict.fromkeys(ROLES, row) | ({} if base is None else {"base": np.tile(np.array(base), (len(ids), 1))})
    mask = np.array([False, *[True] * (len(ids) - 1)])
    return Inputs(mask, token_ids=np.array(ids), logits=every)


def test_gem_at_beta_one_and_linear_has_the_gradient_of_sft() -> None:
    """q = p: sum_v q (grad log p(v)) is 0, and -grad log p(y) is left; at any other beta it is not."""
    logits = PLAIN.logits["student"].clone().requires_grad_()
    batch = Batch({**PLAIN.logits, "student": logits}, PLAIN.token_ids, PLAIN.mask, PLAIN.labels)
    losses = [computed("gem", {"beta": beta, "h": "linear"}, batch.inputs(), xp_torch).sum() for beta in (1.0, 0.7)]
    nll = torch.nn.functional.cross_entropy(logits[PLAIN.mask], PLAIN.token_ids[PLAIN.mask], reduction="sum")
    of_one, of_less, plain = (torch.autograd.grad(loss, logits)[0] for loss in (*losses, nll))
    torch.testing.assert_close(of_one, plain)
    assert (of_less - plain).abs().max() > 1e-2


def test_asft_without_the_anchor_is_dft_and_beside_its_own_reference_has_no_divergence() -> None:
    same = one([2.0, 0.5, -1.0], [0, 1, 2])
    p = np.exp([2.0, 0.5, -1.0]) / np.exp([2.0, 0.5, -1.0]).sum()
    dft = [0.0, *(-p[y] * np.log(p[y]) for y in (1, 2))]
    for kl in (0.0, 5.0):
        np.testing.assert_allclose(computed("asft", {"kl": kl}, same, np), dft, atol=1e-12)


def test_unlikelihood_counts_a_token_once_however_often_it_was_said() -> None:
    logits = [1.0, 0.0, -1.0, 0.5]
    once = computed("unlikelihood", {}, one(logits, [0, 1, 3]), np)[-1]
    often = computed("unlikelihood", {}, one(logits, [0, 1, 0, 1, 1, 3]), np)[-1]
    p = np.exp(logits) / np.exp(logits).sum()
    assert often == pytest.approx(once, abs=1e-12)
    assert once == pytest.approx(-np.log(p[3]) - np.log(1 - p[0]) - np.log(1 - p[1]), abs=1e-12)


def test_unlikelihood_penalty_is_bounded() -> None:
    losses = computed("unlikelihood", {}, one([1e4, -1e4, 0.0], [0, 1]), np)
    assert losses[1] == pytest.approx(2e4 - math.log(1e-5), abs=1e-6)


def test_unlikelihood_takes_no_negative_id_for_a_token() -> None:
    logits = [1.0, 0.0, -1.0, 0.5]
    plain = computed("unlikelihood", {}, one(logits, [0, 1, 3]), np)[-1]
    for ids in ([-100, 0, 1, 3], [0, -100, 1, 3], [-100, -100, 0, -100, 1, 3]):
        given = one(logits, ids)
        inputs = Inputs(given.mask & (np.array(ids) >= 0), token_ids=given.token_ids, logits=given.logits)
        assert computed("unlikelihood", {}, inputs, np)[-1] == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("name", ["undial", "ce_u"])
def test_a_token_of_label_zero_has_no_loss_even_if_it_is_impossible(name: str) -> None:
    given = one([1.0, 0.0, -math.inf], [0, 2, 1, 2])
    zero = Inputs(given.mask, token_ids=given.token_ids, logits=given.logits, labels=np.zeros(4))
    assert computed(name, {"forget": "labelled"}, zero, np).tolist() == [0.0] * 4
    logits = torch.tensor(given.logits["student"]).requires_grad_()
    live = Inputs(
        torch.tensor(given.mask),
        token_ids=torch.tensor(given.token_ids),
        logits={"student": logits, "reference": logits},
        labels=torch.tensor([math.nan, 0.0, math.nan, 0.0], dtype=torch.float64),
    )
    losses = computed(name, {"forget": "labelled"}, live, xp_torch)
    assert losses[[1, 3]].tolist() == [0.0, 0.0]
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[[1, 3]].any()


def test_ce_u_skips_the_first_scored_tokens_not_the_first_tokens() -> None:
    inputs = one([1.0, 0.0, -1.0], [0, 1, 2, 0, 1])
    late = Inputs(np.array([False, False, True, False, True]), token_ids=inputs.token_ids, logits=inputs.logits)
    assert (computed("ce_u", {}, late, np) != 0).tolist() == [False, False, False, False, True]
    assert (computed("ce_u", {"skip": 0}, late, np) != 0).tolist() == [False, False, True, False, True]
    assert (computed("ce_u", {"skip": 2}, late, np) == 0).all()


def test_cdpo_pushes_hardest_where_the_models_differ_most() -> None:
    positive, negative = [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]
    s = np.exp([-3.0, 0.0, 0.0]) / np.exp([-3.0, 0.0, 0.0]).sum()
    weights = computed("cdpo", {}, one(positive, [1, 0, 1], base=negative), np)
    np.testing.assert_allclose(weights, [0.0, s[0] - 1, s[1] - 1], atol=1e-12)
    with pytest.raises(InvalidParameter, match=r"weigh_chosen.*chosen"):
        get_method("cdpo").parse({"weigh_chosen": True})


@pytest.mark.parametrize("name", METHODS)
def test_broken_or_absent_distributions_are_errors(name: str) -> None:
    whole = PLAIN.inputs(Tensor.numpy)
    with pytest.raises(InvalidParameter, match="local frozen"):
        computed(name, {}, Inputs(whole.mask, token_ids=whole.token_ids), np)
    with pytest.raises(InvalidParameter, match="token ids"):
        computed(name, {}, Inputs(whole.mask, labels=whole.labels, logits=whole.logits), np)
    broken = {role: values.copy() for role, values in whole.logits.items()}
    for values in broken.values():
        values[..., 5] = np.nan  # one logit in each row is enough
    with pytest.raises(EngineFault, match=f"{name}: a (loss|priority) is not finite"):
        computed(name, {}, Inputs(whole.mask, token_ids=whole.token_ids, logits=broken), np)
