"""Calibration against a brute force over the whole dataset, and against the server that applies the threshold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority import AsyncClient, Calibration, Client, ContractBroken, InvalidParameter, NotFound, Scores
from tokenpriority.calibration import Ranking
from tokenpriority_service.engines.engine import Job
from tokenpriority_service.engines.fake import FakeEngine

RNG = np.random.default_rng(11)
DATASET = [
    {"token_ids": RNG.integers(0, 500, n), "mask": RNG.integers(0, 2, n)} if n % 3 else RNG.integers(0, 500, n)
    for n in RNG.integers(1, 80, 150).tolist()
]


def brute_force() -> np.ndarray[Any, Any]:
    """Every scored token's statistic under the two engines of the service, float32, largest first."""
    ids = [np.asarray(s["token_ids"] if isinstance(s, dict) else s, np.uint32) for s in DATASET]
    masks = [np.asarray(s["mask"], bool) if isinstance(s, dict) else np.ones(len(s), bool) for s in DATASET]
    jobs = [Job(each) for each in ids]
    relabelled = [Job((each + 1) % 512) for each in ids]  # the service's base, see conftest.py

    async def rows() -> tuple[list[Any], list[Any]]:
        return await FakeEngine().score(jobs), await FakeEngine().score(relabelled)

    references, bases = asyncio.run(rows())
    wanted = [(r[0] - b[0])[1:][m[1:]] for r, b, m in zip(references, bases, masks, strict=True)]
    return np.sort(np.concatenate(wanted))[::-1]


@pytest.fixture
def client(service: str) -> Iterator[Client]:
    with Client(service, retries=0) as connected:
        yield connected


@pytest.mark.parametrize("keep", [0.6, 0.05, 1.0])
def test_the_threshold_is_the_kth_largest_statistic(client: Client, keep: float) -> None:
    statistics = brute_force()
    calibration = client.calibrate(iter(DATASET), method="token_cleaning", params={"keep": keep})
    k = int(len(statistics) * keep)
    assert calibration.tokens == len(statistics)
    assert calibration.threshold == statistics[k - 1]
    assert calibration.kept == (statistics >= statistics[k - 1]).sum() >= k
    assert calibration.params == {
        "base": "base",
        "keep": keep,
        "scope": "dataset",
        "threshold": float(statistics[k - 1]),
    }
    assert set(calibration.fingerprints) == {"reference", "base"}
    assert calibration.fingerprints == client.fingerprints


def test_the_server_keeps_exactly_what_was_calibrated(client: Client, service: str, tmp_path: Path) -> None:
    client.calibrate(DATASET, method="forgetting").save(tmp_path / "c.json")
    calibration = Calibration.load(tmp_path / "c.json")
    with Client(service, retries=0) as later:
        scores = later.score(DATASET, method=calibration.method, params=calibration.params)
        later.pin(calibration.fingerprints)
        assert later.fingerprints == calibration.fingerprints
    priorities = np.concatenate([s.priorities for s in scores])
    assert (priorities == 1).sum() == calibration.kept
    assert (priorities == -1).sum() == calibration.tokens - calibration.kept


def test_the_async_client_gives_the_same(client: Client, service: str) -> None:
    async def calibrate() -> Calibration:
        async with AsyncClient(service) as other:
            return await other.calibrate(DATASET, method="token_cleaning")

    assert asyncio.run(calibrate()) == client.calibrate(DATASET, method="token_cleaning")


def test_spans_change_nothing(client: Client) -> None:
    plain: list[dict[str, Any]] = [{"token_ids": [5, 6, 7, 8, 9]}, {"text": "some text"}]
    labelled = [{**sequence, "spans": [{"start": 1, "end": 3, "priority": 0.0}]} for sequence in plain]
    assert client.calibrate(plain, method="token_cleaning") == client.calibrate(labelled, method="token_cleaning")


def scored(logprobs: Any) -> Scores:
    """A sequence as the method `uniform` returns it; NaN is a token that does not count."""
    values = np.array([np.nan, *logprobs], np.float32)
    priorities = np.where(np.isnan(values), 0, 1).astype(np.float32)
    return Scores(id=0, token_ids=np.arange(len(values), dtype=np.uint32), logprobs=values, priorities=priorities)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-100, 0, width=32), min_size=1, max_size=60, unique=True),
    st.floats(0.01, 1),
)
def test_without_ties_exactly_k_are_kept_even_through_json(values: list[float], keep: float) -> None:
    ranking = Ranking("token_cleaning", {"keep": keep})
    zeros = np.zeros(len(values), np.float32)
    ranking.add(scored(values), scored(zeros))
    k = int(np.floor(len(values) * keep))
    fingerprints = {"reference": "a", "base": "b", "other": "c"}
    if k == 0:
        with pytest.raises(InvalidParameter, match="keeps none"):
            ranking.calibration("reference", fingerprints)
        return
    calibration = ranking.calibration("reference", fingerprints)
    threshold = json.loads(json.dumps(calibration.params))["threshold"]
    assert calibration.kept == k
    assert (np.array(values, np.float32) >= threshold).sum() == k
    assert (np.array(values, np.float64) >= threshold).sum() == k
    assert calibration.fingerprints == {"reference": "a", "base": "b"}


def test_ties_with_the_last_are_kept() -> None:
    ranking = Ranking("token_cleaning", {"keep": 0.5})
    ranking.add(scored([-1, -2, -2, -2]), scored([0, 0, 0, 0]))
    calibration = ranking.calibration("reference", {"reference": "a", "base": "b"})
    assert (calibration.threshold, calibration.tokens, calibration.kept) == (-2.0, 4, 4)


def test_one_float_is_kept_per_token() -> None:
    ranking = Ranking("token_cleaning")
    ranking.add(scored([-1, np.nan, -2]), scored([0, np.nan, 0]))
    assert len(ranking._statistics) == 2 * 4


def test_what_cannot_be_ranked_is_refused(client: Client) -> None:
    with pytest.raises(InvalidParameter, match="prift_mass ranks nothing over a dataset"):
        client.calibrate(DATASET, method="prift_mass")
    with pytest.raises(NotFound, match="no method"):
        client.calibrate(DATASET, method="no_such")
    for given_too_much in ({"threshold": 1.0}, {"scope": "sequence"}):
        with pytest.raises(InvalidParameter, match="calibrate finds the threshold"):
            client.calibrate(DATASET, method="token_cleaning", params=given_too_much)
    with pytest.raises(InvalidParameter, match="keep"):
        client.calibrate(DATASET, method="token_cleaning", params={"keep": 2})
    for nothing in ([], [[1]], [{"token_ids": [1, 2], "mask": [1, 0]}]):
        with pytest.raises(InvalidParameter, match="of 0 tokens keeps none"):
            client.calibrate(nothing, method="token_cleaning")


def test_two_tokenizations_are_never_compared() -> None:
    ranking = Ranking("token_cleaning")
    with pytest.raises(ContractBroken, match="tokenise it differently"):
        ranking.add(scored([-1, -2]), scored([-1]))


def test_evidence_that_is_not_finite_is_refused() -> None:
    ranking = Ranking("token_cleaning")
    with pytest.raises(ContractBroken, match="no finite statistic"):
        ranking.add(scored([-1, -np.inf]), scored([-1, -1]))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"method": "x", "surprise": 1}'])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.json: not a calibration"):
        Calibration.load(path)
