"""Calibration against a brute force over the whole dataset, and against the server that applies the threshold."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority import AsyncClient, Calibration, Client, ContractBroken, InvalidParameter, NotFound, Scores
from tokenpriority.calibration import Calibrator
from tokenpriority.methods import METHODS, Inputs, get_method
from tokenpriority.methods.scope import RankingParams
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
    assert (calibration.version, calibration.package) == (
        get_method("token_cleaning").version,
        version("tokenpriority"),
    )


def test_the_dataset_is_known_by_its_tokens_in_order(client: Client) -> None:
    calibration = client.calibrate(DATASET, method="token_cleaning")
    content = hashlib.blake2b(digest_size=16)
    for sequence in DATASET:
        ids = np.asarray(sequence["token_ids"] if isinstance(sequence, dict) else sequence, "<u4")
        content.update(np.array([len(ids)], "<u8").tobytes() + ids.tobytes())
    assert (calibration.sequences, calibration.digest) == (len(DATASET), content.hexdigest())
    joined = client.calibrate([[1, 2, 3, 4]], method="token_cleaning", params={"keep": 1.0})
    parted = client.calibrate([[1, 2], [3, 4]], method="token_cleaning", params={"keep": 1.0})
    assert joined.digest != parted.digest != calibration.digest


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


FINGERPRINTS = {"reference": "a", "base": "b", "other": "c"}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-100, 0, width=32), min_size=1, max_size=60, unique=True),
    st.floats(0.01, 1),
)
def test_without_ties_exactly_k_are_kept_even_through_json(values: list[float], keep: float) -> None:
    k = int(np.floor(len(values) * keep))
    with Calibrator("token_cleaning", {"keep": keep}) as calibrator:
        calibrator.add([scored(values), scored(np.zeros(len(values)))])
        if k == 0:
            with pytest.raises(InvalidParameter, match="keeps none"):
                calibrator.calibration(FINGERPRINTS)
            return
        calibration = calibrator.calibration(FINGERPRINTS)
    threshold = json.loads(json.dumps(calibration.params))["threshold"]
    assert calibration.kept == k
    assert (np.array(values, np.float32) >= threshold).sum() == k
    assert (np.array(values, np.float64) >= threshold).sum() == k
    assert calibration.fingerprints == {"reference": "a", "base": "b"}


def test_ties_with_the_last_are_kept() -> None:
    with Calibrator("token_cleaning", {"keep": 0.5}) as calibrator:
        calibrator.add([scored([-1, -2, -2, -2]), scored([0, 0, 0, 0])])
        calibration = calibrator.calibration(FINGERPRINTS)
    assert (calibration.threshold, calibration.tokens, calibration.kept) == (-2.0, 4, 4)


class EntropyParams(RankingParams):
    keep: float = 0.25
    scope: Literal["sequence", "dataset"] = "dataset"


def entropy(inputs: Inputs, params: EntropyParams, *, xp: Any) -> Any:
    return inputs.evidence("reference").signal("entropy_top20") - inputs.evidence("reference").logprob


def top_entropy(inputs: Inputs, params: EntropyParams, *, xp: Any) -> Any:
    value = entropy(inputs, params, xp=xp)
    return xp.where(value >= params.threshold, xp.ones_like(value), xp.zeros_like(value))


def test_any_statistic_of_one_model(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is not in the registry, of one model and a signal that is computed only where it is named."""
    method = replace(
        get_method("token_cleaning"),
        name="top_entropy",
        roles=("reference",),
        signals=("logprob", "entropy_top20"),
        params=EntropyParams,
        formula=top_entropy,
        statistic=entropy,
    )
    monkeypatch.setitem(METHODS, "top_entropy", method)
    calibration = client.calibrate(iter(DATASET), method="top_entropy")
    scores = client.score(DATASET, signals=["entropy_top20"])
    statistics = np.concatenate([(s.signals["entropy_top20"] - s.logprobs)[s.priorities != 0] for s in scores])
    k = int(len(statistics) * 0.25)
    assert calibration.threshold == np.sort(statistics)[::-1][k - 1]
    assert set(calibration.fingerprints) == {"reference"}
    applied = client.score(DATASET, method="top_entropy", params=calibration.params)
    assert sum(int((s.priorities == 1).sum()) for s in applied) == calibration.kept


def test_what_cannot_be_ranked_is_refused(client: Client) -> None:
    with pytest.raises(InvalidParameter, match="prift_mass ranks nothing over a dataset"):
        client.calibrate(DATASET, method="prift_mass")
    with pytest.raises(NotFound, match="no method"):
        client.calibrate(DATASET, method="no_such")
    for given_too_much, got in (
        ({"threshold": 1.0}, "threshold = 1.0"),
        ({"scope": "sequence"}, "scope = 'sequence'"),
        ({"scope": "dataset", "threshold": 2.0}, "scope = 'dataset', threshold = 2.0"),
    ):
        with pytest.raises(
            InvalidParameter, match=f"finds the threshold .* give neither scope nor threshold, got {got}"
        ):
            client.calibrate(DATASET, method="token_cleaning", params=given_too_much)
    with pytest.raises(InvalidParameter, match="keep"):
        client.calibrate(DATASET, method="token_cleaning", params={"keep": 2})
    for nothing in ([], [[1]], [{"token_ids": [1, 2], "mask": [1, 0]}]):
        with pytest.raises(InvalidParameter, match="of 0 tokens keeps none"):
            client.calibrate(nothing, method="token_cleaning")


def test_two_tokenizations_are_never_compared() -> None:
    with Calibrator("token_cleaning") as calibrator, pytest.raises(ContractBroken, match="tokenise it differently"):
        calibrator.add([scored([-1, -2]), scored([-1])])


def test_evidence_that_is_not_finite_is_refused() -> None:
    with Calibrator("token_cleaning") as calibrator, pytest.raises(ContractBroken, match="no finite statistic"):
        calibrator.add([scored([-1, -np.inf]), scored([-1, -1])])
