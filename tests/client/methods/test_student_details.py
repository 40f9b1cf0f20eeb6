"""What is easy to get wrong in the methods of the live student: edges, means, medians, and parameters refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise

Given = dict[str, Any]


def weigh(name: str, given: Given, mask: list[list[bool]] | None = None, **student: list[list[float]]) -> np.ndarray:
    arrays = {signal: np.array(values) for signal, values in student.items()}
    shape = next(iter(arrays.values())).shape
    evidence = Evidence(**({"logprob": np.full(shape, -1.0)} | arrays))
    method = get_method(name)
    inputs = Inputs(np.ones(shape, np.bool_) if mask is None else np.array(mask), student=evidence)
    return np.asarray(prioritise(method, method.parse(given), inputs, xp=np))


@pytest.mark.parametrize("name", ["focal", "mile"])
def test_the_mean_weight_over_the_micro_batch_is_one(name: str) -> None:
    logprob, entropy = [[-0.1, -2.0, -5.0], [-0.5, -1.5, -9.0]], [[0.1, 2.0, 3.0], [1.0, 0.0, 6.0]]
    mask = [[True, True, False], [True, False, False]]
    weights = weigh(name, {"gamma": 2.0}, mask, logprob=logprob, entropy=entropy)
    assert weights.sum() / 3 == pytest.approx(1)
    assert len(np.unique(weights[np.array(mask)])) == 3


def test_focal_of_a_certain_micro_batch_is_zero() -> None:
    assert not weigh("focal", {}, logprob=[[0.0, 0.0]]).any()
    almost = weigh("focal", {}, logprob=[[-1e-20, -3e-20]])
    np.testing.assert_allclose(almost, [[0.5, 1.5]], err_msg="no cancellation in 1 - p")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_exponent_makes_focal_or_mile_underflow_or_overflow(dtype: type[np.floating[Any]]) -> None:
    def both(name: str, gamma: float, **signal: list[float]) -> list[float]:
        method = get_method(name)
        values = {"logprob": [-1.0] * 2} | signal
        student = Evidence(**{key: np.array(value, dtype) for key, value in values.items()})
        got = prioritise(method, method.parse({"gamma": gamma}), Inputs(np.ones(2, np.bool_), student=student), xp=np)
        assert got.dtype == dtype
        out: list[float] = got.tolist()
        return out

    ratio = math.expm1(-0.002) / math.expm1(-0.001)  # of the two 1 - p
    expected = [2 / (1 + ratio**20), 2 * ratio**20 / (1 + ratio**20)]
    assert both("focal", 20.0, logprob=[-0.001, -0.002]) == pytest.approx(expected, rel=1e-3)
    assert both("focal", 100.0, logprob=[0.0, -1e-6]) == [0.0, 2.0]
    share = (12.0 / 11.5) ** 50
    assert both("mile", 50.0, entropy=[11.0, 10.5]) == pytest.approx([2 * share / (1 + share), 2 / (1 + share)], 1e-3)
    assert both("mile", 100.0, entropy=[11.0, 0.0]) == pytest.approx([2.0, 0.0])


def test_cayley_alpha_does_not_fall_below_its_clamp() -> None:
    """At p = e^-9 alone alpha would be 0.0001."""
    p = math.exp(-9)
    assert 0.5 * p + (1 - 0.5 * p) * p / (2 - p) < 0.001
    weights = weigh("cayley", {}, logprob=[[-9.0, -9.0]])
    np.testing.assert_allclose(weights, 0.001 / (0.001 + 1e-8) * math.exp(-9 * 0.001), rtol=1e-12)


def test_infosft_ends_at_the_learnt_probability() -> None:
    at = math.log(0.93)
    weights = weigh("infosft", {}, logprob=[[0.0, 1e-9, at, at + 1e-9, at - 1e-9, math.log(0.5), -200.0]])[0]
    assert weights[:4].tolist() == [0, 0, 0, 0]
    assert 0 < weights[4] < 1e-7
    assert weights[5] == pytest.approx(0.5), "logit 0"
    assert 0 < weights[6] < 1e-80


def test_talr_takes_the_lower_median_of_the_sequences_that_have_tokens() -> None:
    mask = [[True, True], [True, False], [False, False], [False, True], [True, True], [False, False]]
    logprob = [[-1.0, -3.0], [-0.5, -80.0], [-70.0, -70.0], [-60.0, -7.0], [-4.0, -2.0], [-9.0, -9.0]]
    weights = weigh("talr", {}, mask, logprob=logprob)  # mean NLL 2, 0.5, none, 7, 3, none: the lower of 2 and 3
    assert weights[0, 0] == pytest.approx(math.exp(-1 / 2))
    assert weights[3, 1] == pytest.approx(math.exp(-7 / 2))
    assert weigh("talr", {}, logprob=[[-0.01, -50.0]])[0].tolist() == pytest.approx(
        [math.exp(-0.01 / 25.005), 0.5755], abs=1e-4
    )
    assert weigh("talr", {}, logprob=[[0.0, 0.0]]).tolist() == [[1.0, 1.0]], "tau at its floor"


def test_an_underflowing_selected_token_is_still_counted_as_kept() -> None:
    method = get_method("bll_threshold")
    student = Evidence(logprob=np.array([-200.0, -0.1], np.float32))
    given = Inputs(np.array([True, True]), student=student)
    weights = prioritise(method, method.parse({"side": "bottom", "tau": 0.5}), given, xp=np)
    assert method.denominator == "kept"
    assert (weights != 0).tolist() == [True, False]
    assert weights[0] < 1e-29


def test_psft_stops_above_its_clip_alone() -> None:
    method = get_method("psft")
    old = np.array([-3.0, -3.0, -3.0, -3.0, -3.0])
    change = np.array([math.log(0.5), math.log(1.27), math.log(1.29), 30.0, -25.0])
    inputs = Inputs(np.ones(5, np.bool_), student=Evidence(old + change), old=Evidence(old))
    weights = prioritise(method, method.parse(), inputs, xp=np)
    np.testing.assert_allclose(weights, [0.5, 1.27, 0, 0, 0])


def test_ranktuner_scale_is_one_where_probability_meets_expectation() -> None:
    entropy = math.log(2) * 3  # bits: s = 8 / 4 + 1 = 3
    given: dict[str, Any] = {"entropy": [[entropy]], "rank": [[2.0]], "top1_logprob": [[-1.0]]}
    assert weigh("ranktuner", {"weight": "one"}, logprob=[[math.log(1 / 3)]], **given)[0, 0] == pytest.approx(1)
    assert weigh("ranktuner", {}, logprob=[[math.log(1 / 3)]], **given)[0, 0] == pytest.approx(1 / 3)
    rarer = weigh("ranktuner", {"weight": "one"}, logprob=[[-1000.0]], **given)[0, 0]
    assert rarer == pytest.approx(1e6 ** (1 / 4)), "the floor under p s bounds S; K = log2(4)^-2"


def test_eaft_reads_the_entropy_it_is_told_to() -> None:
    eaft = get_method("eaft")
    assert eaft.reads(eaft.parse()) == eaft.signals == ("entropy_top20",)
    assert eaft.reads(eaft.parse({"entropy": "full"})) == ("entropy",)
    assert weigh("eaft", {}, entropy_top20=[[math.log(20)]])[0, 0] == pytest.approx(0.9986, abs=1e-4)
    assert weigh("eaft", {"entropy": "full"}, entropy=[[6.0]])[0, 0] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("bll", {"alpha": 0.0}, r"alpha.*greater than 0"),
        ("bll_threshold", {"tau": 0.5}, r"side.*required"),
        ("bll_threshold", {"side": "top"}, r"tau.*required"),
        ("bll_threshold", {"side": "top", "tau": 1.0}, r'"top" needs tau below 1'),
        ("bll_threshold", {"side": "bottom", "tau": 0.0}, r'"bottom" needs tau above 0'),
        ("focal", {"gamma": 0.0}, r"gamma.*greater than 0"),
        ("focal", {"gamma": 101.0}, r"gamma.*less than or equal to 100"),
        ("mile", {"gamma": 101.0}, r"gamma.*less than or equal to 100"),
        ("bll", {"alpha": 101.0}, r"alpha.*less than or equal to 100"),
        ("eaft", {"alpha": 21.0}, r"alpha.*less than or equal to 20"),
        ("profit", {"mode": "middle"}, r"upper goes with mode"),
        ("profit", {"upper": 0.5}, r"upper goes with mode"),
        ("profit", {"mode": "middle", "tau": 0.5, "upper": 0.4}, r"upper must be at least tau, 0.5"),
        ("profit", {"mode": "chance"}, r"mode.*'higher', 'lower', 'middle' or 'random'"),
        ("infosft", {"learnt": 0.5}, r"learnt.*greater than 0.5"),
        ("infosft", {"learnt": 1.0}, r"learnt.*less than 1"),
        ("psft", {"high": 0.9}, r"high.*greater than or equal to 1"),
        ("deft", {"source": "base"}, r"source.*'reference' or 'student'"),
    ],
)
def test_bad_parameters_are_refused(name: str, params: Given, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        get_method(name).parse(params)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.9])
def test_profit_drops_the_share_it_is_told_and_other_tokens_with_another_seed(tau: float) -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, (40, 500))
    method = get_method("profit")

    def kept(seed: int) -> Any:
        params = method.parse({"mode": "random", "tau": tau, "seed": seed})
        inputs = Inputs(np.ones(ids.shape, np.bool_), student=Evidence(np.zeros(ids.shape)), token_ids=ids)
        return prioritise(method, params, inputs, xp=np)

    first, second = kept(0), kept(1)
    assert first.mean() == pytest.approx(1 - tau, abs=0.015)
    agreeing = (1 - tau) ** 2 + tau**2
    assert (first == second).mean() == pytest.approx(agreeing, abs=0.02), "two seeds draw independently"
    assert (first[:, 1:] == first[:, :-1]).mean() == pytest.approx(agreeing, abs=0.02), "and so do neighbours"


def test_profit_cannot_draw_without_token_ids() -> None:
    method = get_method("profit")
    inputs = Inputs(np.ones(3, np.bool_), student=Evidence(np.zeros(3)))
    with pytest.raises(InvalidParameter, match=r"method.params.mode: 'random' draws by token ids"):
        prioritise(method, method.parse({"mode": "random"}), inputs, xp=np)
    with pytest.raises(InvalidParameter, match='seed goes with mode "random" only'):
        method.parse({"seed": 3})
