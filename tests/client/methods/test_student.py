"""Methods of the live student against plain loops."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from agreement import BACKENDS, Loop, Row, agree, inputs_of, micro_batches, traced
from tokenpriority.evidence import ALL_SIGNALS, Evidence
from tokenpriority.methods import Inputs, get_method, prioritise
from tokenpriority.methods.student import STUDENT

Weights = list[list[float]]
Given = dict[str, Any]


def signals(row: Row, p: Given) -> dict[str, list[float]]:
    return row.evidence[p.get("source", "student")]


def each(weight: Callable[[dict[str, float], Given], float]) -> Loop:
    """A loop of a weight that is a function of the token's own signals."""

    def loop(rows: list[Row], p: Given) -> Weights:
        out = []
        for row in rows:
            found = [0.0] * len(row)
            for i in row.wanted:
                found[i] = weight({name: values[i] for name, values in signals(row, p).items()}, p)
            out.append(found)
        return out

    return loop


def over_mean(values: Weights, rows: list[Row]) -> Weights:
    counted = [values[r][i] for r, row in enumerate(rows) for i in row.wanted]
    if sum(counted) == 0:
        return [[0.0] * len(row) for row in rows]
    average = sum(counted) / len(counted)
    return [[value / average for value in row] for row in values]  # those not wanted are 0


def probability(s: dict[str, float], p: Given) -> float:
    return math.exp(s["logprob"])


def power(s: dict[str, float], p: Given) -> float:
    return math.pow(probability(s, p), p.get("alpha", 1.0))


def threshold(s: dict[str, float], p: Given) -> float:
    own = probability(s, p)
    kept = own >= p["tau"] if p["side"] == "top" else own <= p["tau"]
    return (1.0 if p.get("weight") == "one" else own) if kept else 0.0


def deft(s: dict[str, float], p: Given) -> float:
    alpha = s["collision"]
    return alpha / (alpha + 1e-6) * math.pow(probability(s, p), alpha)


def loop_cayley(rows: list[Row], p: Given) -> Weights:
    all_p = [math.exp(signals(row, p)["logprob"][i]) for row in rows for i in row.wanted]
    floor = 0.5 * sum(all_p) / len(all_p) if all_p else 0.0

    def weight(s: dict[str, float], p: Given) -> float:
        d = 1 - probability(s, p)
        alpha = min(max(floor + (1 - floor) * (1 - d) / (1 + d), 0.001), 1.0)
        return alpha / (alpha + 1e-8) * math.pow(probability(s, p), alpha)

    return each(weight)(rows, p)


def loop_focal(rows: list[Row], p: Given) -> Weights:
    return over_mean(each(lambda s, p: (1 - probability(s, p)) ** p.get("gamma", 1.0))(rows, p), rows)


def loop_mile(rows: list[Row], p: Given) -> Weights:
    return over_mean(each(lambda s, p: (1 + s["entropy"]) ** p.get("gamma", 1.0))(rows, p), rows)


def loop_talr(rows: list[Row], p: Given) -> Weights:
    losses = [-sum(signals(row, p)["logprob"][i] for i in row.wanted) / len(row.wanted) for row in rows if row.wanted]
    tau = max(statistics.median_low(losses), 1e-6) if losses else 1.0
    return each(lambda s, p: max(max(probability(s, p), 1e-6) ** (1 / tau), 0.01))(rows, p)


def profit(s: dict[str, float], p: Given) -> float:
    own, tau = probability(s, p), p.get("tau", 0.1)
    drop = {"higher": own < tau, "lower": own > tau, "middle": own < tau or own > p.get("upper", 1.0)}
    return 0.0 if drop[p.get("mode", "higher")] else 1.0


def loop_profit_random(rows: list[Row], p: Given) -> Weights:
    def draw(ids: list[int], place: int) -> float:
        state = p.get("seed", 0)
        for part in (ids[place], ids[place - 1] if place else 0, place, 0, 0):
            state = ((state + part) * 1103515245 + 12345) % 2**31
            state ^= state >> 15
        return float(state / 2**31)

    tau = p.get("tau", 0.1)
    return [
        [1.0 if wanted and draw(row.token_ids, i) >= tau else 0.0 for i, wanted in enumerate(row.mask)] for row in rows
    ]


def infosft(s: dict[str, float], p: Given) -> float:
    own, learnt = probability(s, p), float(p.get("learnt", 0.93))
    if own >= learnt:
        return 0.0
    return own * max(0.0, 1 - math.log(own / (1 - own)) / math.log(learnt / (1 - learnt)))


def eaft(s: dict[str, float], p: Given) -> float:
    entropy = s["entropy" if p.get("entropy") == "full" else "entropy_top20"]
    return math.pow(entropy / 3.0, p.get("alpha", 1.0))


def ranktuner(s: dict[str, float], p: Given) -> float:
    bits = s["entropy"] / math.log(2)
    expected = 0.25 * 2**bits + 1 if bits >= 2 else 1 + (1 - math.exp(s["top1_logprob"]))
    k = 1 / math.log2(max(s["rank"], expected) + 1) ** 2
    scale = math.pow(max(probability(s, p) * expected, 1e-6), -k)
    return scale * (1.0 if p.get("weight") == "one" else probability(s, p))


def loop_psft(rows: list[Row], p: Given) -> Weights:
    def weight(new: float, old: float) -> float:
        ratio = math.exp(min(max(new - old, -20.0), 20.0))
        return ratio if ratio <= p.get("high", 1.28) and new - old >= -20 else 0.0

    pairs = [zip(row.logprob("student"), row.logprob("old"), row.mask, strict=True) for row in rows]
    return [[weight(new, old) if wanted else 0.0 for new, old, wanted in row] for row in pairs]


CASES: list[tuple[str, Given, Loop]] = [
    ("dft", {}, each(probability)),
    ("dft", {"source": "reference"}, each(probability)),
    ("bll", {}, each(power)),
    ("bll", {"alpha": 10.0, "source": "reference"}, each(power)),
    ("bll", {"alpha": 0.5}, each(power)),
    ("bll_threshold", {"side": "top", "tau": 0.5}, each(threshold)),
    ("bll_threshold", {"side": "top", "tau": 0.0, "source": "reference"}, each(threshold)),
    ("bll_threshold", {"side": "bottom", "tau": 0.5}, each(threshold)),
    ("bll_threshold", {"side": "top", "tau": 0.5, "weight": "one"}, each(threshold)),
    ("bll_threshold", {"side": "bottom", "tau": 1.0, "weight": "one"}, each(threshold)),
    ("deft", {}, each(deft)),
    ("deft", {"source": "reference"}, each(deft)),
    ("cayley", {}, loop_cayley),
    ("cayley", {"source": "reference"}, loop_cayley),
    ("focal", {}, loop_focal),
    ("focal", {"gamma": 2.5, "source": "reference"}, loop_focal),
    ("talr", {}, loop_talr),
    ("talr", {"source": "reference"}, loop_talr),
    ("profit", {}, each(profit)),
    ("profit", {"mode": "lower", "tau": 0.7, "source": "reference"}, each(profit)),
    ("profit", {"mode": "middle", "tau": 0.1, "upper": 0.8}, each(profit)),
    ("profit", {"mode": "middle", "tau": 0.5, "upper": 1.0}, each(profit)),
    ("profit", {"mode": "random", "tau": 0.4}, loop_profit_random),
    ("profit", {"mode": "random", "tau": 0.7, "seed": 2**31 - 1, "source": "reference"}, loop_profit_random),
    ("infosft", {}, each(infosft)),
    ("infosft", {"learnt": 0.7, "source": "reference"}, each(infosft)),
    ("eaft", {}, each(eaft)),
    ("eaft", {"alpha": 2.0, "source": "reference"}, each(eaft)),
    ("eaft", {"alpha": 0.5, "entropy": "full"}, each(eaft)),
    ("mile", {}, loop_mile),
    ("mile", {"gamma": 2.0, "source": "reference"}, loop_mile),
    ("ranktuner", {}, each(ranktuner)),
    ("ranktuner", {"weight": "one", "source": "reference"}, each(ranktuner)),
    ("psft", {}, loop_psft),
    ("psft", {"high": 1.0}, loop_psft),
]


def test_every_weight_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == {method.name for method in STUDENT if method.formula}


@pytest.mark.parametrize(("name", "params", "loop"), CASES)
@settings(max_examples=20, deadline=None)
@given(rows=micro_batches())
def test_formula_equals_plain_loop(name: str, params: Given, loop: Loop, rows: list[Row]) -> None:
    agree(name, params, loop, rows)


@pytest.mark.parametrize(("name", "params"), [(name, params) for name, params, _ in CASES])
def test_body_is_traced_whole(name: str, params: Given) -> None:
    traced(name, params)


EXTREMES = [0.0, 1e-9, -1e-30, -1e-9, -1e-7, -0.0725, -40.0, -100.0, -120.0, -1000.0]
"""Log-probs: certain, rounded to just above certain, at the edges of either dtype, all but impossible."""


def extreme(values: list[float], dtype: type[np.floating[Any]]) -> Inputs:
    """A micro-batch of one wanted token per value, the student certain of none, few or many other tokens."""
    rows = [values] * 3
    others = np.array([[0.0], [-1e-7], [12.5]], dtype) + np.zeros((3, len(values)), dtype)
    one: dict[str, Any] = {signal: np.full((3, len(values)), 1.0, dtype) for signal in ALL_SIGNALS}
    one |= {
        "logprob": np.array(rows, dtype),
        "entropy": others,
        "entropy_top20": np.minimum(others, dtype(2.99)),
        "top1_logprob": np.where(others > 1, dtype(-8.0), dtype(0.0)),
        "rank": np.where(others > 1, dtype(150000.0), dtype(1.0)),
        "collision": np.where(others > 1, dtype(1e-6), dtype(1.0)),
    }
    old = Evidence(logprob=np.full((3, len(values)), -1.0, dtype))
    ids, wanted = np.arange(3 * len(values)).reshape(3, -1), np.ones((3, len(values)), np.bool_)
    return Inputs(wanted, student=Evidence(**one), reference=Evidence(**one), old=old, token_ids=ids)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "params"), [(name, params) for name, params, _ in CASES])
def test_certain_and_impossible_tokens_have_a_finite_weight(
    name: str, params: Given, dtype: type[np.floating[Any]]
) -> None:
    method = get_method(name)
    together = prioritise(method, method.parse(params), extreme(EXTREMES, dtype), xp=np)
    assert together.dtype == dtype
    assert (together >= 0).all()
    for value in EXTREMES:  # alone too: a micro-batch whose every token is certain, or impossible
        assert (prioritise(method, method.parse(params), extreme([value], dtype), xp=np) >= 0).all()


@pytest.mark.parametrize(("name", "params"), [(name, params) for name, params, _ in CASES])
def test_what_is_masked_out_has_no_influence(name: str, params: Given) -> None:
    method = get_method(name)
    given = extreme([-0.1, -0.7, -3.0], np.float64)
    alone = prioritise(method, method.parse(params), given, xp=np)

    def spoilt(evidence: Evidence | None) -> Evidence:
        assert evidence is not None
        padding = np.array([[np.nan, np.inf, 0.0, -np.inf]] * 3)
        columns = {name: getattr(evidence, name) for name in ALL_SIGNALS}
        return Evidence(**{n: v if v is None else np.concatenate([v, padding], axis=1) for n, v in columns.items()})

    more = Inputs(
        np.concatenate([given.mask, np.zeros((3, 4), np.bool_)], axis=1),
        student=spoilt(given.student),
        reference=spoilt(given.reference),
        old=spoilt(given.old),
        token_ids=np.concatenate([given.token_ids, np.full((3, 4), -100)], axis=1),
    )
    weights = prioritise(method, method.parse(params), more, xp=np)
    np.testing.assert_allclose(weights[:, :3], alone, rtol=1e-14)
    assert not weights[:, 3:].any()


@pytest.mark.parametrize(("name", "params"), [(name, params) for name, params, _ in CASES])
def test_nothing_wanted_and_length_one_give_zeros(name: str, params: Given) -> None:
    empty = Row([False], {r: {s: [math.nan] for s in ALL_SIGNALS} for r in ("reference", "base", "student", "old")},
                [math.nan], [False], [7])  # fmt: skip
    method = get_method(name)
    for xp, array, _ in BACKENDS:
        weights = np.from_dlpack(prioritise(method, method.parse(params), inputs_of([empty, empty], array), xp=xp))
        np.testing.assert_array_equal(weights, np.zeros((2, 1)))
