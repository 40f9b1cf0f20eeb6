"""Methods of frozen models: ties, edges and directions, each by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tokenpriority import Client
from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise


def priorities(name: str, params: dict[str, Any], inputs: Inputs) -> list[float]:
    method = get_method(name)
    weights: list[float] = prioritise(method, method.parse(params), inputs, xp=np).tolist()
    return weights


def pair(ratios: list[float]) -> Inputs:
    """A sequence whose reference exceeds the base by these ratios, all tokens wanted but the first."""
    base = np.array([np.nan, *(-20.0 for _ in ratios)])
    reference = np.array([np.nan, *(-20.0 + ratio for ratio in ratios)])
    return Inputs(np.array([False, *(True for _ in ratios)]), Evidence(reference), Evidence(base))


def test_prift_mass_is_exact_when_the_token_is_at_the_threshold() -> None:
    one = np.array([0.5], np.float32)
    evidence = Evidence(np.log(one), mass_above=one, mass_tied=np.array([0.0], np.float32))
    assert priorities("prift_mass", {"tau": 0.5}, Inputs(np.array([True]), evidence)) == [1.0]


def test_prift_mass_keeps_everything_at_tau_zero_whatever_the_rounding() -> None:
    above = np.array([1 - 2**-24, 1.0], np.float32)  # a token so unlikely that the masses round to more than 1
    evidence = Evidence(
        np.array([-18.0, -20.0], np.float32), mass_above=above, mass_tied=np.float32(2**-23) + 0 * above
    )
    assert priorities("prift_mass", {"tau": 0.0}, Inputs(np.array([True, True]), evidence)) == [1.0, 1.0]


def test_t3s_keeps_what_token_cleaning_drops_and_the_unmoved() -> None:
    inputs = pair([1.0, -0.5, 0.25, 0.0, -2.0])
    cleaning = priorities("token_cleaning", {"scope": "dataset", "threshold": 1e-9}, inputs)
    t3s = priorities("t3s", {}, inputs)
    assert cleaning == [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert t3s == [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("ratio", [0.125, 0.375, -0.125, -0.625, 2.0, 0.004999])
def test_tis_dpo_rounds_half_to_even_as_python_and_torch_do(ratio: float) -> None:
    got = priorities("tis_dpo", {"transform": "origin"}, pair([ratio]))[1]
    assert got == pytest.approx(round(ratio, 2), abs=1e-12)
    assert got == pytest.approx(float(torch.round(torch.tensor(ratio, dtype=torch.float64), decimals=2)), abs=1e-12)


def test_tis_dpo_binary_drops_all_equal_ratios_at_the_cut_or_the_later_ones() -> None:
    inputs = pair([1.0, 0.501, 0.5, 0.499, -1.0])  # three of them round to 0.5
    binary = {"transform": "binary", "keep": 0.6}
    assert priorities("tis_dpo", binary, inputs) == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert priorities("tis_dpo", {**binary, "ties": "place"}, inputs) == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert priorities("tis_dpo", {**binary, "keep": 0.8}, inputs) == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert not any(priorities("tis_dpo", binary, pair([0.3, 0.3, 0.3, 0.3])))


def test_tis_dpo_ranks_the_earlier_of_equal_ratios_lower_and_one_token_at_one() -> None:
    assert priorities("tis_dpo", {}, pair([0.5, 0.5, 0.5])) == pytest.approx([0.0, 0.7, 1.0, 1.3])
    assert priorities("tis_dpo", {}, pair([-4.0])) == [0.0, 1.0]


@pytest.mark.parametrize("extra", [{"keep": 0.5}, {"ties": "place"}])
def test_tis_dpo_refuses_what_its_transform_would_ignore(extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match=r'keep and ties go with transform "binary" only'):
        get_method("tis_dpo").parse({"transform": "threshold", **extra})


def test_xtf_drops_what_is_known_exactly_to_the_last_float_below_one() -> None:
    evidence = Evidence(np.array([0.0, -(2.0**-24), -0.0512, -0.0514], np.float32))  # log 0.95 is -0.05129
    assert priorities("xtf_known", {}, Inputs(np.ones(4, np.bool_), evidence)) == [0.0, 0.0, 0.0, 1.0]
    assert priorities("xtf_known", {"known": 0.0}, Inputs(np.ones(4, np.bool_), evidence)) == [1.0] * 4


@pytest.mark.parametrize(("lambda_p", "lambda_r"), [(0.0, 1.0), (0.25, 1.0), (0.5, 0.0), (0.1, 0.7)])
def test_wit_over_tokens_of_non_zero_weight_is_the_loss_of_its_authors(lambda_p: float, lambda_r: float) -> None:
    nll = np.array([9.9, 1.0, 2.5, 0.25, 4.0, 3.0])
    inputs = Inputs(np.array([False, *[True] * 5]), prompt=np.array([True, True, True, False, False, False]))
    weights = np.array(priorities("wit", {"lambda_p": lambda_p, "lambda_r": lambda_r}, inputs))
    authors = (lambda_p * 3.5 + lambda_r * 7.25) / ((lambda_p != 0) * 2 + (lambda_r != 0) * 3)
    assert get_method("wit").denominator == "kept"
    assert float((weights * nll).sum() / np.count_nonzero(weights)) == pytest.approx(authors, rel=1e-12)


def test_wit_says_how_to_give_the_prompt_and_that_something_must_count() -> None:
    with pytest.raises(InvalidParameter, match=r"prompt \+ completion or messages"):
        priorities("wit", {}, Inputs(np.array([False, True])))
    with pytest.raises(InvalidParameter, match="cannot both be 0"):
        get_method("wit").parse({"lambda_r": 0.0})


def test_shad_calls_boilerplate_what_shuffling_left_predictable() -> None:
    assert priorities("shad", {"boilerplate": 0.25}, pair([0.5, 0.0, -0.5])) == [0.0, 0.25, 0.25, 1.0]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("xtf_known", {"known": 0.9995}),
        ("t3s", {}),
        ("shad", {"boilerplate": 0.25}),
        ("tis_dpo", {}),
        ("tis_dpo", {"transform": "binary", "keep": 0.4}),
    ],
)
def test_the_service_gives_what_the_formula_makes_of_its_logprobs(
    service: str, name: str, params: dict[str, Any]
) -> None:
    method = get_method(name)
    sequences = [{"token_ids": list(range(3, 40)), "score_from": 5}, {"token_ids": [7]}]
    with Client(service) as client:
        base = client.score(sequences, model="base")
        for scores, other in zip(client.score(sequences, method=name, params=params), base, strict=True):
            mask = np.isfinite(scores.logprobs)
            inputs = Inputs(mask, Evidence(scores.logprobs), Evidence(other.logprobs))
            expected = prioritise(method, method.parse(params), inputs, xp=np)
            np.testing.assert_array_equal(scores.priorities, expected)
        assert len(np.unique(client.score(sequences[:1], method=name, params=params)[0].priorities[5:])) > 1


def test_the_service_tells_wit_the_prompt_which_counts_where_it_is_scored(service: str) -> None:
    pair = {"prompt": "abc", "completion": "de"}
    with Client(service) as client:
        scored, whole = client.score([pair, {**pair, "score_from": 1}], method="wit", params={"lambda_p": 0.25})
    last = scored.priorities[5:].tolist()  # what the template or an end of sequence adds belongs to the response
    assert scored.priorities.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, *last]
    assert whole.priorities.tolist() == [0.0, 0.25, 0.25, 1.0, 1.0, *last]
    assert set(last) <= {1.0}
