"""Methods of the student and a frozen model against plain loops, and at the ends of their range."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat.torch as xp_torch
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from agreement import Loop, Row, agree, micro_batches, traced
from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise

Weights = list[list[float]]
Given = dict[str, Any]


def lag(row: Row, i: int) -> float:
    """NLL of the student less that of the reference."""
    return row.logprob("reference")[i] - row.logprob("student")[i]


def loop_rho1(rows: list[Row], p: Given) -> Weights:
    places = [(row, i) for row in range(len(rows)) for i in rows[row].wanted]
    places.sort(key=lambda place: (-lag(rows[place[0]], place[1]), place))
    kept = places[: math.floor(len(places) * p["keep"])]
    return [[1 / p["keep"] if (r, i) in kept else 0.0 for i in range(len(row))] for r, row in enumerate(rows)]


def loop_sstoken_excess(rows: list[Row], p: Given) -> Weights:
    """With the authors' min-max, which the formula leaves out."""
    out = []
    for row in rows:
        score = {i: -lag(row, i) for i in row.wanted}
        least, greatest = min(score.values(), default=0.0), max(score.values(), default=0.0)
        scaled = {i: (value - least) / (greatest - least + 1e-8) for i, value in score.items()}
        best = sorted(scaled, key=lambda i: (-scaled[i], i))[: math.ceil(len(scaled) * p.get("keep", 0.6))]
        out.append([1.0 if i in best else 0.0 for i in range(len(row))])
    return out


def loop_iw_sft(rows: list[Row], p: Given) -> Weights:
    out = []
    for row in rows:
        weights = [0.0] * len(row)
        for i in row.wanted:
            if p.get("unit") == "token":
                weights[i] = min(max(math.exp(-lag(row, i)), 0.2), 1.8)
            else:
                mean = sum(-lag(row, j) for j in row.wanted) / len(row.wanted)
                weights[i] = min(max(math.exp(p.get("temperature", 1.0) * mean), 0.0), 16.0)
        out.append(weights)
    return out


CASES: list[tuple[str, Given, Loop]] = [
    ("rho1", {"keep": 0.6}, loop_rho1),
    ("rho1", {"keep": 0.29}, loop_rho1),
    ("rho1", {"keep": 1.0}, loop_rho1),
    ("sstoken_excess", {}, loop_sstoken_excess),
    ("sstoken_excess", {"keep": 0.29}, loop_sstoken_excess),
    ("iw_sft", {}, loop_iw_sft),
    ("iw_sft", {"temperature": 2.0}, loop_iw_sft),
    ("iw_sft", {"unit": "token"}, loop_iw_sft),
]


@pytest.mark.parametrize(("name", "params", "loop"), CASES)
@settings(max_examples=40, deadline=None)
@given(rows=micro_batches())
def test_formula_equals_plain_loop(name: str, params: Given, loop: Loop, rows: list[Row]) -> None:
    agree(name, params, loop, rows)


@pytest.mark.parametrize(("name", "params"), [(name, params) for name, params, _ in CASES])
def test_body_is_traced_whole(name: str, params: Given) -> None:
    traced(name, params)


def weights(name: str, student: Any, reference: Any, mask: Any = None, **params: Any) -> Any:
    """Priorities in float32; everything is scored unless a mask is given."""
    method = get_method(name)
    student, reference = np.array(student, np.float32), np.array(reference, np.float32)
    wanted = np.ones(student.shape, bool) if mask is None else np.array(mask)
    inputs = Inputs(wanted, student=Evidence(student), reference=Evidence(reference))
    got = prioritise(method, method.parse(params), inputs, xp=np)
    assert got.dtype == np.float32
    return got.tolist()


def test_rho1_ranks_the_micro_batch_and_not_each_row() -> None:
    student, reference = [[-9.0, -9.0, -9.0], [-1.0, -1.0, -1.0]], [[-1.0, -2.0, -3.0], [-1.0, -1.5, -2.0]]
    assert weights("rho1", student, reference, keep=0.5) == [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]


def test_rho1_gives_ties_to_the_earlier_row() -> None:
    even = [[-1.0, -1.0], [-1.0, -1.0]]
    assert weights("rho1", even, even, keep=0.5) == [[2.0, 2.0], [0.0, 0.0]]


def test_rho1_has_the_loss_its_authors_write() -> None:
    """Where N k is whole: the sum over the kept tokens divided by N k."""
    generator = torch.Generator().manual_seed(0)
    student, reference = (-torch.rand(2, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    method = get_method("rho1")
    inputs = Inputs(torch.ones(2, 5, dtype=torch.bool), student=Evidence(student), reference=Evidence(reference))
    given_weights = prioritise(method, method.parse({"keep": 0.4}), inputs, xp=xp_torch)
    _, best = torch.topk((reference - student).flatten(), 4)
    torch.testing.assert_close((given_weights * -student).sum() / 10, -student.flatten()[best].mean())


def test_rho1_does_not_guess_its_share() -> None:
    with pytest.raises(InvalidParameter, match=r"method\.params\.keep: Field required"):
        get_method("rho1").parse()


def test_sstoken_keeps_at_least_one_token_and_rounds_up() -> None:
    assert weights("sstoken_excess", [[-1.0]], [[-1.0]], keep=0.01) == [[1.0]]
    assert weights("sstoken_excess", [-1.0, -2.0, -3.0], [-1.5] * 3, keep=0.5) == [1.0, 1.0, 0.0]
    assert sum(weights("sstoken_excess", [-1.0] * 5, [-1.0] * 5)) == 3, "0.6 of 5 is 3, not 4"


@pytest.mark.parametrize("far", [-100.0, -1e4, -1e30])
def test_iw_sft_reaches_its_bounds_and_never_overflows(far: float) -> None:
    zero = [0.0, 0.0]
    assert weights("iw_sft", zero, [far, far], temperature=100.0) == [16.0, 16.0]
    assert weights("iw_sft", [far, far], zero) == pytest.approx(zero, abs=1e-40)
    assert weights("iw_sft", [0.0, far, -1.0], [far, 0.0, -1.0], unit="token") == pytest.approx([1.8, 0.2, 1.0])


def test_iw_sft_takes_the_mean_of_scored_tokens_alone() -> None:
    nan = math.nan
    got = weights("iw_sft", [nan, -1.0, nan, -2.0], [nan, -2.0, nan, -2.0], [False, True, False, True])
    assert got == pytest.approx([0.0, math.exp(0.5), 0.0, math.exp(0.5)])


def test_iw_sft_refuses_a_temperature_that_nothing_reads() -> None:
    with pytest.raises(InvalidParameter, match="temperature goes with unit"):
        get_method("iw_sft").parse({"unit": "token", "temperature": 2.0})


@pytest.mark.parametrize(("name", "params"), [("rho1", {"keep": 0.6}), ("sstoken_excess", {}), ("iw_sft", {})])
@pytest.mark.parametrize("width", [1, 3])
def test_rows_without_a_scored_token_have_no_weight(name: str, params: Given, width: int) -> None:
    nothing = np.full((2, width), math.nan)
    assert weights(name, nothing, nothing, np.zeros((2, width), bool), **params) == [[0.0] * width] * 2
