"""Methods of frozen models against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agreement import BACKENDS, Loop, Row, agree, inputs_of, micro_batches, traced
from tokenpriority.errors import EngineFault
from tokenpriority.evidence import SIGNALS, Evidence
from tokenpriority.methods import Inputs, get_method, prioritise
from tokenpriority.methods.frozen import FROZEN

Weights = list[list[float]]
Given = dict[str, Any]


def best(score: list[float], row: Row, n: int) -> set[int]:
    """Indices of the n best masked-in scores; of equal scores the earlier."""
    return set(sorted(row.wanted, key=lambda i: (-score[i], i))[:n])


def excess(row: Row) -> list[float]:
    return [r - b for r, b in zip(row.logprob("reference"), row.logprob("base"), strict=True)]


def loop_uniform(rows: list[Row], p: Given) -> Weights:
    return [[1.0 if m else 0.0 for m in row.mask] for row in rows]


def loop_spans(rows: list[Row], p: Given) -> Weights:
    return [[float(p.get("outside", 0.0)) if m else 0.0 for m in row.mask] for row in rows]


def loop_probability(rows: list[Row], p: Given) -> Weights:
    source = p.get("source", "reference")
    return [[math.exp(row.logprob(source)[i]) if m else 0.0 for i, m in enumerate(row.mask)] for row in rows]


def loop_prift_mass(rows: list[Row], p: Given) -> Weights:
    def weight(row: Row, i: int) -> float:
        signals = row.evidence[p.get("source", "reference")]
        at_or_below = 1 - signals["mass_above"][i]
        if p.get("ties", "strict") == "strict":
            at_or_below -= signals["mass_tied"][i]
        return 1.0 if at_or_below >= p.get("tau", 0.5) else 0.0

    return [[weight(row, i) if m else 0.0 for i, m in enumerate(row.mask)] for row in rows]


def loop_token_cleaning(rows: list[Row], p: Given) -> Weights:
    out = []
    for row in rows:
        score = excess(row)
        if "threshold" in p:
            out.append([1.0 if m and s >= p["threshold"] else 0.0 for m, s in zip(row.mask, score, strict=True)])
            continue
        keep = best(score, row, int(sum(row.mask) * p.get("keep", 0.6)))
        out.append([1.0 if i in keep else 0.0 for i in range(len(row))])
    return out


def loop_forgetting(rows: list[Row], p: Given) -> Weights:
    out = []
    for row in rows:
        score = excess(row)
        if "threshold" in p:
            signs = [1.0 if s >= p["threshold"] else -1.0 for s in score]
            out.append([sign if m else 0.0 for m, sign in zip(row.mask, signs, strict=True)])
            continue
        n, rho = sum(row.mask), p.get("keep", 0.7)
        positive = best(score, row, int(n * rho))
        negative = best(score, row, int(n * rho) + int(n * (1 - rho))) - positive
        out.append([1.0 if i in positive else -1.0 if i in negative else 0.0 for i in range(len(row))])
    return out


def loop_wit(rows: list[Row], p: Given) -> Weights:
    prompt, response = p.get("lambda_p", 0.0), p.get("lambda_r", 1.0)
    return [
        [0.0 if not m else prompt if in_prompt else response for m, in_prompt in zip(row.mask, row.prompt, strict=True)]
        for row in rows
    ]


def loop_xtf_known(rows: list[Row], p: Given) -> Weights:
    def weight(logprob: float) -> float:
        return 0.0 if 1 - math.exp(logprob) < p.get("known", 0.05) else 1.0

    source = p.get("source", "reference")
    return [[weight(row.logprob(source)[i]) if m else 0.0 for i, m in enumerate(row.mask)] for row in rows]


def loop_t3s(rows: list[Row], p: Given) -> Weights:
    return [[1.0 if m and s <= 0 else 0.0 for m, s in zip(row.mask, excess(row), strict=True)] for row in rows]


def loop_shad(rows: list[Row], p: Given) -> Weights:
    def weight(row: Row, i: int) -> float:
        difference = -row.logprob("reference")[i] + row.logprob("base")[i]
        return float(p["boilerplate"] if difference <= 0 else p.get("reasoning", 1.0))

    return [[weight(row, i) if m else 0.0 for i, m in enumerate(row.mask)] for row in rows]


def loop_tis_dpo(rows: list[Row], p: Given) -> Weights:
    out = []
    for row in rows:
        weights = transformed([round(excess(row)[i], 2) for i in row.wanted], p)
        placed = dict(zip(row.wanted, weights, strict=True))
        out.append([placed.get(i, 0.0) for i in range(len(row))])
    return out


def transformed(ratios: list[float], p: Given) -> list[float]:
    """The authors' transforms of one sequence's ratios, prompt left out."""
    n = len(ratios)
    match p.get("transform", "rank_based"):
        case "origin":
            return ratios
        case "threshold":
            return [min(max(ratio, -1.0), 1.0) for ratio in ratios]
        case "threshold_and_scale":
            return [0.7 + (min(max(ratio, -1.5), 1.5) + 1.5) * (1.3 - 0.7) / 3 for ratio in ratios]
        case "rank_based":
            place = {i: rank for rank, i in enumerate(sorted(range(n), key=lambda i: (ratios[i], i)))}
            return [0.7 + place[i] / (n - 1) * 0.6 for i in range(n)] if n > 1 else [1.0] * n
    descending = sorted(range(n), key=lambda i: (-ratios[i], i))
    cut = int(n * p.get("keep", 1.0))
    if p.get("ties") == "place":
        return [1.0 if i in descending[:cut] else 0.0 for i in range(n)]
    by_value = {ratios[i]: 1.0 if rank < cut else 0.0 for rank, i in enumerate(descending)}  # the last rank stays
    return [by_value[ratio] for ratio in ratios]


CASES: list[tuple[str, Given, Loop]] = [
    ("uniform", {}, loop_uniform),
    ("spans", {"outside": -0.5}, loop_spans),
    ("prift_prob", {}, loop_probability),
    ("prift_prob", {"source": "student"}, loop_probability),
    ("prift_mass", {}, loop_prift_mass),
    ("prift_mass", {"tau": 0.75, "ties": "inclusive"}, loop_prift_mass),
    ("prift_mass", {"source": "student"}, loop_prift_mass),
    ("token_cleaning", {}, loop_token_cleaning),
    ("token_cleaning", {"keep": 0.29}, loop_token_cleaning),
    ("token_cleaning", {"scope": "dataset", "threshold": 0.0}, loop_token_cleaning),
    ("forgetting", {"scope": "sequence"}, loop_forgetting),
    ("forgetting", {"scope": "dataset", "threshold": -0.5}, loop_forgetting),
    ("wit", {}, loop_wit),
    ("wit", {"lambda_p": 0.5, "lambda_r": 0.25}, loop_wit),
    ("xtf_known", {}, loop_xtf_known),
    ("xtf_known", {"known": 0.5, "source": "student"}, loop_xtf_known),
    ("t3s", {}, loop_t3s),
    ("shad", {"boilerplate": 0.25}, loop_shad),
    ("shad", {"boilerplate": 0.0, "reasoning": 2.0}, loop_shad),
    ("tis_dpo", {}, loop_tis_dpo),
    ("tis_dpo", {"transform": "origin"}, loop_tis_dpo),
    ("tis_dpo", {"transform": "threshold"}, loop_tis_dpo),
    ("tis_dpo", {"transform": "threshold_and_scale"}, loop_tis_dpo),
    ("tis_dpo", {"transform": "binary"}, loop_tis_dpo),
    ("tis_dpo", {"transform": "binary", "keep": 0.5}, loop_tis_dpo),
    ("tis_dpo", {"transform": "binary", "keep": 0.5, "ties": "place"}, loop_tis_dpo),
]


def test_every_method_has_a_case() -> None:
    """Those that read whole distributions are held to account elsewhere."""
    assert {name for name, _, _ in CASES} == {method.name for method in FROZEN if not method.distributions}


@pytest.mark.parametrize(("name", "params", "loop"), CASES)
@settings(max_examples=40, deadline=None)
@given(rows=micro_batches())
def test_formula_equals_plain_loop(name: str, params: Given, loop: Loop, rows: list[Row]) -> None:
    agree(name, params, loop, rows)


@pytest.mark.parametrize(("name", "params"), [(name, params) for name, params, _ in CASES])
def test_body_is_traced_whole(name: str, params: Given) -> None:
    traced(name, params)


@settings(max_examples=40, deadline=None)
@given(rows=micro_batches(), keep=st.floats(0.01, 1.0))
def test_kept_share_is_the_floor(rows: list[Row], keep: float) -> None:
    method = get_method("token_cleaning")
    weights = prioritise(method, method.parse({"keep": keep}), inputs_of(rows, BACKENDS[0][1]), xp=np)
    assert weights.sum(axis=-1).tolist() == [int(len(row.wanted) * keep) for row in rows]


READING = [(name, params) for name, params, _ in CASES if get_method(name).roles]


@pytest.mark.parametrize(("name", "params"), READING)
def test_broken_evidence_is_an_error_where_it_is_wanted_and_only_there(name: str, params: Given) -> None:
    method = get_method(name)
    filled = Evidence(**{signal: np.array([np.nan, -1.0, np.nan], np.float32) for signal in SIGNALS})

    def run(mask: list[bool]) -> Any:
        return prioritise(method, method.parse(params), Inputs(np.array(mask), filled, filled, filled), xp=np)

    assert run([False, True, False])[[0, 2]].tolist() == [0.0, 0.0]
    with pytest.raises(EngineFault, match="evidence is missing or broken"):
        run([False, True, True])


@pytest.mark.parametrize(("name", "params"), READING)
def test_certain_and_impossible_tokens_have_a_finite_weight(name: str, params: Given) -> None:
    """log-probs of exactly 0, of a float32 step below it, of -100 and beyond; the dtype stays that of the evidence."""
    method = get_method(name)
    logprob = np.array([np.nan, 0.0, -(2.0**-24), -100.0, -1e5], np.float32)
    ends = np.array([np.nan, 0.0, 0.0, 1.0, 1.0], np.float32)
    reference = Evidence(logprob, mass_above=ends, mass_tied=0 * ends)
    base = Evidence(np.array([np.nan, -1e5, -100.0, 0.0, -(2.0**-24)], np.float32))
    inputs = Inputs(np.array([False, True, True, True, True]), reference, base, reference)
    weights = prioritise(method, method.parse(params), inputs, xp=np)
    assert weights.dtype == np.float32
    assert np.isfinite(weights).all()
    if method.sign == "positive":
        assert (weights >= 0).all()
