"""Methods of frozen models against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings

from agreement import Loop, Row, agree, micro_batches, traced

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
]


@pytest.mark.parametrize(("name", "params", "loop"), CASES)
@settings(max_examples=40, deadline=None)
@given(rows=micro_batches())
def test_formula_equals_plain_loop(name: str, params: Given, loop: Loop, rows: list[Row]) -> None:
    agree(name, params, loop, rows)


@pytest.mark.parametrize(("name", "params"), [(name, params) for name, params, _ in CASES])
def test_body_is_traced_whole(name: str, params: Given) -> None:
    traced(name, params)
