"""Unlearning methods against plain loops, and at the ends of their range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from agreement import Loop, Row, agree, micro_batches, traced
from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise

Given = dict[str, Any]
Push = Callable[[Row, list[int], Given], dict[int, float]]
"""(row, indices of its forgotten tokens, params) -> how hard each of them is pushed."""


def laid(push: Push, *, forget: str = "all", shared: bool = False) -> Loop:
    """The loop of a method: `shared` where a sequence's retained tokens share one weight."""

    def loop(rows: list[Row], p: Given) -> list[list[float]]:
        labelled = p.get("forget", forget) == "labelled"
        out = [[0.0] * len(row) for row in rows]
        for row, weights in zip(rows, out, strict=True):
            down = [i for i in row.wanted if not labelled or row.labels[i] < 0]
            up = [i for i in row.wanted if i not in down]
            for i, strength in push(row, down, p).items():
                weights[i] = row.labels[i] * strength if labelled else -strength
            for i in up:
                weights[i] = p.get("retain", 1.0) * (1.0 if math.isnan(row.labels[i]) else row.labels[i])
                weights[i] /= len(up) if shared else 1
        return out

    return loop


def push_flat(row: Row, down: list[int], p: Given) -> dict[int, float]:
    return dict.fromkeys(down, float(p.get("gamma", 1.0)))


def push_wga(row: Row, down: list[int], p: Given) -> dict[int, float]:
    return {i: math.exp(row.logprob(p.get("source", "student"))[i]) ** p.get("beta", 5.0) for i in down}


def push_satimp(row: Row, down: list[int], p: Given) -> dict[int, float]:
    probability = {i: math.exp(row.logprob(p.get("source", "student"))[i]) for i in down}
    return {i: x ** p.get("beta1", 5.0) * (1 - x) ** p.get("beta2", 1.0) for i, x in probability.items()}


def push_npo(row: Row, down: list[int], p: Given) -> dict[int, float]:
    ratio = math.prod(math.exp(row.logprob("student")[i] - row.logprob("reference")[i]) for i in down)
    power = ratio ** p.get("beta", 0.1)
    return dict.fromkeys(down, 2 * power / (1 + power))


def push_simnpo(row: Row, down: list[int], p: Given) -> dict[int, float]:
    source, beta = p.get("source", "student"), p.get("beta", 2.5)
    if not down:
        return {}
    mean = sum(-row.logprob(source)[i] for i in down) / len(down)
    return dict.fromkeys(down, 2 / (1 + math.exp(beta * (mean - p.get("delta", 0.0)))) / len(down))


def push_tnpo(row: Row, down: list[int], p: Given, alpha: float = 0.0) -> dict[int, float]:
    beta = p.get("beta", 4.0)
    out = {}
    for i in down:
        student, reference = math.exp(row.logprob("student")[i]), math.exp(row.logprob("reference")[i])
        out[i] = 2 * student ** (beta + alpha) / (student**beta + reference**beta + 1e-5)
    return out


def push_wtnpo(row: Row, down: list[int], p: Given) -> dict[int, float]:
    return push_tnpo(row, down, p, p.get("alpha", 1.5))


LABELLED = {"forget": "labelled", "retain": 0.25}
CASES: list[tuple[str, Given, Loop]] = [
    ("ga", {}, laid(push_flat)),
    ("ga", LABELLED, laid(push_flat)),
    ("graddiff", {}, laid(push_flat, forget="labelled")),
    ("graddiff", {"gamma": 0.5, "retain": 2.0}, laid(push_flat, forget="labelled")),
    ("graddiff", {"gamma": 0.5, "forget": "all"}, laid(push_flat)),
    ("wga", {}, laid(push_wga)),
    ("wga", {"beta": 1.0, "source": "reference"}, laid(push_wga)),
    ("wga", LABELLED, laid(push_wga)),
    ("satimp", {}, laid(push_satimp)),
    ("satimp", {"beta1": 0.5, "beta2": 0.0, "source": "reference"}, laid(push_satimp)),
    ("satimp", LABELLED, laid(push_satimp)),
    ("npo", {}, laid(push_npo, shared=True)),
    ("npo", {"beta": 2.0}, laid(push_npo, shared=True)),
    ("npo", LABELLED, laid(push_npo, shared=True)),
    ("simnpo", {}, laid(push_simnpo, shared=True)),
    ("simnpo", {"beta": 4.5, "delta": 1.5, "source": "reference"}, laid(push_simnpo, shared=True)),
    ("simnpo", LABELLED, laid(push_simnpo, shared=True)),
    ("tnpo", {}, laid(push_tnpo)),
    ("tnpo", {"beta": 0.5, **LABELLED}, laid(push_tnpo)),
    ("wtnpo", {}, laid(push_wtnpo)),
    ("wtnpo", {"beta": 2.0, "alpha": 0.5, **LABELLED}, laid(push_wtnpo)),
]


@pytest.mark.parametrize(("name", "params", "loop"), CASES)
@settings(max_examples=25, deadline=None)
@given(rows=micro_batches())
def test_formula_equals_plain_loop(name: str, params: Given, loop: Loop, rows: list[Row]) -> None:
    agree(name, params, loop, rows)


@pytest.mark.parametrize(("name", "params"), [(name, params) for name, params, _ in CASES])
def test_body_is_traced_whole(name: str, params: Given) -> None:
    traced(name, params)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_its_negatives_are_as_its_authors_have_them(name: str) -> None:
    method = get_method(name)
    assert (method.sign, method.negatives, method.schedule, method.labels) == ("signed", "ascent", None, "inside")


# The ends of the range. A warning of numpy's, an overflow too, is an error here.


def weights(name: str, student: list[float], reference: list[float] | None = None, **params: Any) -> list[float]:
    """Priorities in float32 of one sequence, all scored but index 0; the student's log-probs serve as reference's."""
    method, labels = get_method(name), params.pop("labels", None)
    evidence = [Evidence(np.array([np.nan, *values], np.float32)) for values in (student, reference or student)]
    inputs = Inputs(
        np.array([False, *(True for _ in student)]),
        student=evidence[0],
        reference=evidence[1],
        labels=None if labels is None else np.array([np.nan, *labels], np.float32),
    )
    got = prioritise(method, method.parse(params), inputs, xp=np)
    assert got.dtype == (np.float32 if method.roles else np.float64)
    out: list[float] = got[1:].tolist()
    return out


def test_at_certainty_wga_is_ascent_and_satimp_spares() -> None:
    assert weights("wga", [0.0, 0.0], beta=5.0) == [-1.0, -1.0]
    assert weights("satimp", [0.0]) == [0.0]
    assert weights("satimp", [0.0], beta2=0.0) == [-1.0]
    assert weights("satimp", [1e-8]) == [0.0], "a log-prob rounded to above 0"
    near = weights("satimp", [-1e-6])
    assert near == pytest.approx([-1e-6], rel=1e-5), "1 - p does not cancel in float32"


@pytest.mark.parametrize("name", ["wga", "satimp", "tnpo", "wtnpo"])
def test_far_down_the_push_ends_and_stays_a_number(name: str) -> None:
    steepest: Given = {"beta1": 100.0} if name == "satimp" else {"beta": 100.0}
    for params in ({}, steepest):
        assert weights(name, [-100.0, -1e4], **params) == pytest.approx([0.0, 0.0], abs=1e-30)


def test_tnpo_goes_from_two_to_zero_with_who_holds_the_token_likelier() -> None:
    student, reference = [0.0, 0.0, -100.0, -100.0], [-100.0, 0.0, 0.0, -100.0]
    assert weights("tnpo", student, reference) == pytest.approx([-2.0, -1.0, 0.0, 0.0], abs=2.5e-5)
    assert weights("wtnpo", student, reference) == pytest.approx([-2.0, -1.0, 0.0, 0.0], abs=2.5e-5)


def test_npo_is_ascent_at_the_reference_and_bounded_at_any_distance() -> None:
    far, near = [-100.0] * 2048, [0.0] * 2048
    assert weights("npo", [-3.0, -1.0]) == [-1.0, -1.0]
    assert weights("npo", far, near, beta=100.0) == [0.0] * 2048
    assert weights("npo", near, far, beta=100.0) == [-2.0] * 2048


def test_simnpo_shares_its_weight_over_any_length() -> None:
    assert weights("simnpo", [0.0] * 4) == [-0.25] * 4, "certain: half of the bound 2"
    assert weights("simnpo", [-100.0] * 2048) == pytest.approx([0.0] * 2048, abs=1e-38)
    assert weights("simnpo", [0.0] * 2, delta=1000.0) == [-1.0, -1.0]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
@pytest.mark.parametrize("forget", ["all", "labelled"])
def test_rows_without_a_scored_token_have_no_weight(name: str, forget: str) -> None:
    method, nothing = get_method(name), np.full((2, 3), np.nan)
    for width in (1, 3):
        evidence = Evidence(nothing[:, :width])
        inputs = Inputs(
            np.zeros((2, width), bool), student=evidence, reference=evidence, labels=np.full((2, width), -1.0)
        )
        assert not prioritise(method, method.parse({"forget": forget}), inputs, xp=np).any()


def test_labels_say_what_is_forgotten_only_when_asked() -> None:
    labels, logprob = [-2.0, math.nan, 0.0, 0.5], [-1.0] * 4
    assert weights("ga", logprob, labels=labels) == [-1.0] * 4
    assert weights("ga", logprob, labels=labels, forget="labelled", retain=3.0) == [-2.0, 3.0, 0.0, 1.5]
    assert weights("ga", logprob, forget="labelled", retain=3.0) == [3.0] * 4, "nothing labelled, nothing forgotten"
    assert weights("npo", logprob, labels=labels, forget="labelled", retain=3.0) == [-2.0, 1.0, 0.0, 0.5]


@pytest.mark.parametrize("name", ["ga", "satimp", "npo", "simnpo"])
def test_retain_holds_the_authors_alpha_over_gamma_and_the_numbers_of_both_kinds(name: str) -> None:
    """One row of one token to forget and three to retain, under -gamma mean_forget + alpha mean_retain."""
    gamma, alpha, forgotten, retained = 0.125, 1.0, 1, 3
    method, evidence = get_method(name), Evidence(np.array([[math.nan, -1.0]] * 4))
    inputs = Inputs(
        np.array([[False, True]] * 4),
        student=evidence,
        reference=evidence,
        labels=np.array([[math.nan, -1.0], *[[math.nan, math.nan]] * 3]),
    )

    def found(retain: float) -> list[float]:
        params = method.parse({"forget": "labelled", "retain": retain})
        weights: list[float] = (prioritise(method, params, inputs, xp=np)[:, 1] / 4).tolist()
        return weights

    (push,) = weights(name, [-1.0])  # of one token, of one sequence
    theirs = np.array([gamma * push / forgotten, *[alpha / retained] * 3])
    ours = np.array(found(alpha / gamma * forgotten / retained))
    np.testing.assert_allclose(ours / ours[0], theirs / theirs[0], rtol=1e-6)
    equal = np.array(found(alpha / gamma))
    np.testing.assert_allclose((equal / equal[0])[1:], (theirs / theirs[0])[1:] * retained / forgotten, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "params", "parts"),
    [
        ("npo", {"beta": 0.0}, ["method.params.beta", "greater than 0", "0.0"]),
        ("wga", {"retain": -1.0}, ["method.params.retain", "greater than or equal to 0", "-1.0"]),
        ("ga", {"forget": "labeled"}, ["method.params.forget", "'all' or 'labelled'", "'labeled'"]),
        ("npo", {"retain": 2.0}, ["method.params", 'retain goes with forget "labelled" only', "2.0"]),
        ("ga", {"gamma": 1.0}, ["method.params.gamma", "forget, retain"]),
    ],
)
def test_bad_parameters_name_field_value_and_limit(name: str, params: Given, parts: list[str]) -> None:
    with pytest.raises(InvalidParameter) as caught:
        get_method(name).parse(params)
    for part in parts:
        assert part in str(caught.value)
