"""Every method against a second implementation in plain float64 loops, on numpy, torch and the strict array API."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp_torch
import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.errors import EngineFault, InvalidParameter, NotFound
from tokenpriority.evidence import SIGNALS, Evidence
from tokenpriority.methods import METHODS, Inputs, describe, get_method, prioritise

Rows = dict[str, list[float]]


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[bool], Rows, Rows]:
    """A mask and the evidence of two models, with ties, length-1 rows and rows nobody wants scored."""
    length = draw(st.integers(1, 24))
    mask = [False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))]
    return mask, draw(evidence(length)), draw(evidence(length))


@st.composite
def evidence(draw: st.DrawFn, length: int) -> Rows:
    """Masses that sum to at most one; few log-probs, exact in binary, so that scores tie in every dtype."""
    rows: Rows = {name: [math.nan] for name in SIGNALS}
    for _ in range(length - 1):
        tied = draw(st.sampled_from([0.0, 0.25]))
        own = draw(st.sampled_from([0.0625, 0.125, 0.25, 0.5]))
        above = draw(st.sampled_from([0.0, 0.25])) if own + tied < 0.75 else 0.0
        rows["logprob"].append(draw(st.sampled_from([-0.25, -0.5, -1.0, -3.0])))
        rows["entropy"].append(draw(st.floats(0, 5)))
        rows["top1_logprob"].append(-0.25)
        rows["rank"].append(1.0 if above == 0 else 2.0)
        rows["mass_above"].append(above)
        rows["mass_tied"].append(tied)
    return rows


def on(array: Callable[[Any], Any], mask: list[bool], reference: Rows, base: Rows) -> Inputs:
    def convert(rows: Rows) -> Evidence:
        return Evidence(**{name: array(values) for name, values in rows.items()})

    student = convert(reference)
    return Inputs(array(mask), convert(reference), convert(base), student)


def as_numpy(dtype: Any) -> Callable[[Any], Any]:
    return lambda v: np.array(v, bool if isinstance(v[0], bool) else dtype)


def as_torch(v: Any) -> Any:
    return torch.tensor(v, dtype=torch.bool if isinstance(v[0], bool) else torch.float64)


def as_strict(v: Any) -> Any:
    strict = array_api_strict
    return strict.asarray(v, dtype=strict.bool if isinstance(v[0], bool) else strict.float64)


# A second implementation, one plain loop per method.


def best(score: list[float], mask: list[bool], n: int) -> set[int]:
    """Indices of the n best masked-in scores; of equal scores the earlier."""
    wanted = [i for i, m in enumerate(mask) if m]
    return set(sorted(wanted, key=lambda i: (-score[i], i))[:n])


def loop_uniform(mask: list[bool], ref: Rows, base: Rows, p: dict[str, Any]) -> list[float]:
    return [1.0 if m else 0.0 for m in mask]


def loop_probability(mask: list[bool], ref: Rows, base: Rows, p: dict[str, Any]) -> list[float]:
    return [math.exp(lp) if m else 0.0 for m, lp in zip(mask, ref["logprob"], strict=True)]


def loop_prift_mass(mask: list[bool], ref: Rows, base: Rows, p: dict[str, Any]) -> list[float]:
    out = []
    for i, m in enumerate(mask):
        at_or_below = 1 - ref["mass_above"][i]
        if p.get("ties", "strict") == "strict":
            at_or_below -= ref["mass_tied"][i]
        out.append(1.0 if m and at_or_below >= p.get("tau", 0.5) else 0.0)
    return out


def loop_token_cleaning(mask: list[bool], ref: Rows, base: Rows, p: dict[str, Any]) -> list[float]:
    score = [r - b for r, b in zip(ref["logprob"], base["logprob"], strict=True)]
    if "threshold" in p:
        return [1.0 if m and s >= p["threshold"] else 0.0 for m, s in zip(mask, score, strict=True)]
    keep = best(score, mask, int(sum(mask) * p.get("keep", 0.6)))
    return [1.0 if i in keep else 0.0 for i in range(len(mask))]


def loop_forgetting(mask: list[bool], ref: Rows, base: Rows, p: dict[str, Any]) -> list[float]:
    score = [r - b for r, b in zip(ref["logprob"], base["logprob"], strict=True)]
    if "threshold" in p:
        return [(1.0 if s >= p["threshold"] else -1.0) if m else 0.0 for m, s in zip(mask, score, strict=True)]
    n, rho = sum(mask), p.get("keep", 0.7)
    positive = best(score, mask, int(n * rho))
    negative = best(score, mask, int(n * rho) + int(n * (1 - rho))) - positive
    return [1.0 if i in positive else -1.0 if i in negative else 0.0 for i in range(len(mask))]


def loop_spans(mask: list[bool], ref: Rows, base: Rows, p: dict[str, Any]) -> list[float]:
    return [float(p.get("outside", 0.0)) if m else 0.0 for m in mask]


CASES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("uniform", {}, loop_uniform),
    ("prift_prob", {}, loop_probability),
    ("prift_prob", {"source": "student"}, loop_probability),
    ("dft", {}, loop_probability),
    ("dft", {"source": "reference"}, loop_probability),
    ("prift_mass", {}, loop_prift_mass),
    ("prift_mass", {"tau": 0.75, "ties": "inclusive"}, loop_prift_mass),
    ("token_cleaning", {}, loop_token_cleaning),
    ("token_cleaning", {"keep": 0.29}, loop_token_cleaning),
    ("token_cleaning", {"scope": "dataset", "threshold": 0.0}, loop_token_cleaning),
    ("forgetting", {"scope": "sequence"}, loop_forgetting),
    ("forgetting", {"scope": "dataset", "threshold": -0.5}, loop_forgetting),
    ("spans", {"outside": -0.5}, loop_spans),
]


def test_every_method_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == set(METHODS)


@pytest.mark.parametrize(("name", "params", "loop"), CASES)
@settings(max_examples=60, deadline=None)
@given(data=sequences())
def test_formula_equals_plain_loop(
    name: str,
    params: dict[str, Any],
    loop: Callable[..., list[float]],
    data: tuple[list[bool], Rows, Rows],
) -> None:
    method = get_method(name)
    parsed = method.parse(params)
    expected = loop(*data, params)
    for xp, array, tolerance in (
        (np, as_numpy(np.float64), 1e-12),
        (np, as_numpy(np.float32), 1e-6),
        (xp_torch, as_torch, 1e-12),
        (array_api_strict, as_strict, 1e-12),
    ):
        got = prioritise(method, parsed, on(array, *data), xp=xp)
        assert got.shape == (len(expected),)
        np.testing.assert_allclose([float(x) for x in got], expected, rtol=0, atol=tolerance)


@settings(max_examples=100, deadline=None)
@given(data=sequences(), keep=st.floats(0.01, 1.0))
def test_kept_share_is_the_floor(data: tuple[list[bool], Rows, Rows], keep: float) -> None:
    method = get_method("token_cleaning")
    weights = prioritise(method, method.parse({"keep": keep}), on(as_numpy(np.float64), *data), xp=np)
    assert int(np.sum(weights)) == int(sum(data[0]) * keep)


def test_dft_gradient_is_that_of_one_minus_p() -> None:
    """methods.md 4.1: the loss f(p) = 1 - p has the implied weight -p f'(p) = p, which is DFT's."""
    logits = torch.randn(6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([1, 4, 4, 0, 10, 3])

    def gradient(loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        logprob = torch.log_softmax(leaf, -1).gather(-1, target[:, None])[:, 0]
        loss(logprob).backward()
        assert leaf.grad is not None
        return leaf.grad

    def weighted(logprob: torch.Tensor) -> torch.Tensor:
        method = get_method("dft")
        inputs = Inputs(torch.ones(6, dtype=torch.bool), student=Evidence(logprob.detach()))
        weights: torch.Tensor = prioritise(method, method.parse(), inputs, xp=xp_torch)
        return -(weights * logprob).sum()

    torch.testing.assert_close(gradient(weighted), gradient(lambda lp: (1 - lp.exp()).sum()))


def test_prift_mass_is_exact_when_the_token_is_at_the_threshold() -> None:
    method = get_method("prift_mass")
    one = np.array([0.5], np.float32)
    evidence = Evidence(np.log(one), mass_above=one, mass_tied=np.array([0.0], np.float32))
    weights = prioritise(method, method.parse({"tau": 0.5}), Inputs(np.array([True]), evidence), xp=np)
    assert weights.tolist() == [1.0]


def test_prift_mass_keeps_everything_at_tau_zero_whatever_the_rounding() -> None:
    method = get_method("prift_mass")
    above = np.array([1 - 2**-24, 1.0], np.float32)  # a token so unlikely that the masses round to more than 1
    evidence = Evidence(
        np.array([-18.0, -20.0], np.float32), mass_above=above, mass_tied=np.float32(2**-23) + 0 * above
    )
    inputs = Inputs(np.array([True, True]), evidence)
    assert prioritise(method, method.parse({"tau": 0.0}), inputs, xp=np).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["prift_prob", "prift_mass", "token_cleaning", "forgetting", "dft"])
def test_broken_evidence_is_an_error_where_it_is_wanted_and_only_there(name: str) -> None:
    method = get_method(name)
    params = method.parse({"scope": "sequence"} if name == "forgetting" else {})
    rows = [float("nan"), -1.0, float("nan")]
    filled = Evidence(**{signal: np.array(rows, np.float32) for signal in SIGNALS})

    def run(mask: list[bool]) -> Any:
        return prioritise(method, params, Inputs(np.array(mask), filled, filled, filled), xp=np)

    assert run([False, True, False])[[0, 2]].tolist() == [0.0, 0.0]
    with pytest.raises(EngineFault, match="evidence is missing or broken"):
        run([False, True, True])


@pytest.mark.parametrize(
    ("name", "params", "parts"),
    [
        ("prift_mass", {"tau": 1.5}, ["method.params.tau", "less than or equal to 1", "1.5"]),
        ("prift_mass", {"tau": float("nan")}, ["method.params.tau", "finite"]),
        ("prift_mass", {"tua": 0.5}, ["method.params.tua", "tau, ties, source"]),
        ("prift_mass", {"tau": "0.5"}, ["method.params.tau", "valid number", "'0.5'"]),
        ("prift_mass", {"tau": True}, ["method.params.tau", "valid number", "True"]),
        ("prift_mass", {"ties": "loose"}, ["method.params.ties", "'strict' or 'inclusive'", "loose"]),
        ("token_cleaning", {"keep": 0}, ["method.params.keep", "greater than 0", "0"]),
        ("token_cleaning", {"scope": "dataset"}, ["threshold", "calibrate"]),
        ("token_cleaning", {"threshold": 0.5}, ["threshold", "dataset"]),
        ("forgetting", {}, ["threshold", "calibrate"]),
        ("uniform", {"x": 1}, ["method.params.x", "none"]),
    ],
)
def test_bad_parameters_name_field_value_and_limit(name: str, params: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InvalidParameter) as caught:
        get_method(name).parse(params)
    for part in parts:
        assert part in str(caught.value)


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"'nope'.*uniform.*spans"):
        get_method("nope")


def test_absent_signal_and_absent_role_are_errors() -> None:
    mask = np.array([False, True])
    only_logprob = Inputs(mask, reference=Evidence(np.array([np.nan, -1.0])))
    mass = get_method("prift_mass")
    with pytest.raises(InvalidParameter, match="mass_above"):
        prioritise(mass, mass.parse(), only_logprob, xp=np)
    dft = get_method("dft")
    with pytest.raises(InvalidParameter, match=r"student.*trainer"):
        prioritise(dft, dft.parse(), only_logprob, xp=np)


def test_description_is_complete() -> None:
    for info in describe().methods:
        assert info.summary
        assert info.equation
        assert info.citation
        assert info.denominator in {"all", "kept", "by_sign"}
        assert info.params["additionalProperties"] is False
