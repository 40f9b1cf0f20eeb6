"""Every registered method on a real server: it runs and gives what `prioritise` gives on the evidence that came with
it, or it is refused with one clear error. Nothing in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tokenpriority import wire
from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import ENGINE_SIGNALS, OPTIONAL_SIGNALS, SIGNALS, Evidence
from tokenpriority.methods import METHODS, Inputs, Method, Params, get_method, prioritise
from tokenpriority.spans import apply
from tokenpriority_service.engines.engine import EngineInfo, Job
from tokenpriority_service.engines.fake import FakeEngine

IDS = [int(each) for each in np.random.default_rng(3).integers(4, 400, 90)]
LABELLED = {
    "token_ids": IDS,
    "mask": [1] * 60 + [0] * 10 + [1] * 20,
    "spans": [{"start": 5, "end": 20, "priority": -1.5}, {"start": 15, "end": 18, "priority": 2.0}],
}
PROMPT = {"prompt": "def add(a, b):\n", "completion": "    return a + b\n", "score_from": 3}


def choices(method: Method) -> Iterator[dict[str, Any]]:
    """The parameters that must be given, by themselves and with each choice of every other parameter in turn."""
    schema = method.params.model_json_schema()
    fields = schema.get("properties", {})
    given = {name: fields[name].get("enum", [0.5])[0] for name in schema.get("required", ())}
    if "threshold" in fields:
        given["scope"] = "sequence"
        yield {**given, "scope": "dataset", "threshold": 0.25}
    yield given
    for name, field in fields.items():
        yield from ({**given, name: choice} for choice in field.get("enum", ()) if choice != field.get("default"))
    if {"source", "entropy"} <= set(fields):
        yield {**given, "source": "reference", "entropy": "full"}
    if {"source", "seed"} <= set(fields):
        yield {**given, "source": "reference", "mode": "random", "tau": 0.5}


CASES = [(method.name, params) for method in METHODS.values() for params in choices(method)]


def expected_refusal(method: Method, params: dict[str, Any]) -> str | None:
    """What a server must say of the method with these parameters, by the contract; None if it must run."""
    try:
        parsed = method.parse(params)
    except InvalidParameter as error:
        return error.message
    if method.loss is not None or method.distributions:
        return "whole distribution"
    if set(method.needs(parsed)) - {"reference", "base"}:
        return "live student"
    if "collision" in method.reads(parsed):
        return "which no engine gives"
    return None


def evidence(server: Any, arrays: Any, item: dict[str, Any], model: str) -> Evidence:
    """What the server says of a sequence under one model, in full."""
    plain = {key: value for key, value in item.items() if key != "spans"}
    result = arrays(server.score(plain, model=model, signals=ENGINE_SIGNALS)[0])
    return Evidence(result["logprobs"], **{name: result[name] for name in ENGINE_SIGNALS if name != "logprob"})


def labels(item: dict[str, Any]) -> np.ndarray[Any, Any]:
    out = np.full(len(item["token_ids"]), np.nan, np.float32)
    for span in item["spans"]:
        out[span["start"] : span["end"]] = span["priority"]
    return out


@pytest.fixture(scope="module", params=["fake", "torch"])
def pair(request: pytest.FixtureRequest, serve: Any) -> Iterator[Any]:
    """A server with a reference and a base."""
    if request.param == "torch":
        yield request.getfixturevalue("torch_server")
        return
    with serve({"reference": FakeEngine(), "base": FakeEngine(model="base")}) as server:
        yield server


@pytest.fixture(scope="module")
def known(pair: Any, arrays: Any) -> dict[str, Evidence]:
    return {role: evidence(pair, arrays, LABELLED, role) for role in ("reference", "base")}


@pytest.mark.parametrize(("name", "params"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_it_runs_or_is_refused(
    pair: Any, arrays: Any, known: dict[str, Evidence], name: str, params: dict[str, Any]
) -> None:
    method = get_method(name)
    item = PROMPT if method.reads_prompt else LABELLED
    response = pair.post({"sequences": [item], "method": {"name": name, "params": params}})
    refusal = expected_refusal(method, params)
    if refusal is not None:
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (422, "invalid_parameter")
        assert refusal in error["message"]
        if not error["message"].startswith("method.params"):
            assert error["message"].startswith(f"method.name: {name!r} reads ")
            assert "run it in the trainer" in error["message"]
            says_source = "set method.params.source to 'reference'" in error["message"]
            has_source = "source" in method.params.model_fields and "collision" not in method.signals
            assert says_source == (has_source and refusal == "live student")
        return
    assert response.status_code == 200, response.text
    parsed = method.parse(params)
    answered = response.json()
    assert answered["method"] == {"name": name, "version": method.version, "params": parsed.model_dump()}
    assert ("base" in answered) == ("base" in method.needs(parsed))
    result = arrays(answered["results"][0])
    assert answered["results"][0]["signals"] == {}, "what the method reads is returned only where it is asked for"
    if not method.reads_prompt:  # test_prompt.py has those
        np.testing.assert_array_equal(result["priorities"], weighed(method, parsed, known))


def weighed(method: Method, params: Params, known: dict[str, Evidence]) -> Any:
    """The priorities of `LABELLED`, from its evidence and its labels."""
    mask = np.array([False, *map(bool, LABELLED["mask"][1:])])  # type: ignore[index]
    inputs = Inputs(mask, known["reference"], known["base"], labels=labels(LABELLED), token_ids=np.array(IDS))
    priorities = prioritise(method, params, inputs, xp=np)
    if method.labels == "over":
        priorities = apply(priorities, labels(LABELLED), mask, xp=np)
    return priorities.astype(np.float32)


def test_enough_of_the_registry_runs_on_a_server() -> None:
    runs = {name for name, params in CASES if expected_refusal(get_method(name), params) is None}
    assert len(runs) >= 20
    refused = set(METHODS) - runs
    assert all(set(METHODS[name].roles) & {"student", "old"} or METHODS[name].distributions for name in refused)


INSIDE = [name for name, method in METHODS.items() if method.labels == "inside"]


@pytest.mark.parametrize("name", INSIDE)
def test_labels_are_read_inside_and_not_laid_over(
    pair: Any, arrays: Any, known: dict[str, Evidence], name: str
) -> None:
    """With and without spans in one request: a sequence without them has no label anywhere."""
    method = get_method(name)
    params = {"source": "reference"} if "source" in method.params.model_fields else {}
    if "forget" in method.params.model_fields:
        params["forget"] = "labelled"
    if expected_refusal(method, params) is not None:
        return
    plain = {key: value for key, value in LABELLED.items() if key != "spans"}
    results = pair.score(LABELLED, plain, method={"name": name, "params": params})
    labelled, unlabelled = (arrays(result)["priorities"] for result in results)
    parsed = method.parse(params)
    np.testing.assert_array_equal(labelled, weighed(method, parsed, known))
    mask = np.array([False, *map(bool, LABELLED["mask"][1:])])  # type: ignore[index]
    nowhere = Inputs(mask, known["reference"], labels=np.full(len(IDS), np.nan, np.float32))
    np.testing.assert_array_equal(unlabelled, prioritise(method, parsed, nowhere, xp=np).astype(np.float32))
    assert not (labelled[5:15] > 0).any(), "labelled -1.5: to be forgotten, unless the method's weight underflows"
    assert (unlabelled >= 0).all(), "nothing is to be forgotten"


class Lacking(FakeEngine):
    """An engine of fewer signals, as vLLM's own prompt log-probabilities are."""

    lacking: frozenset[str]

    @property
    def info(self) -> EngineInfo:
        info = super().info
        return replace(info, signals=tuple(name for name in info.signals if name not in self.lacking))

    async def score(self, jobs: Any) -> Any:
        rows: list[Any] = await super().score(jobs)
        for row in rows:
            row[[SIGNALS.index(name) for name in self.lacking if name in SIGNALS]] = np.nan
        return rows


class LogprobAndRank(Lacking):
    lacking = frozenset(ENGINE_SIGNALS) - {"logprob", "rank"}


class WithoutTop20(Lacking):
    lacking = frozenset(OPTIONAL_SIGNALS)


@pytest.mark.parametrize("engine", [LogprobAndRank, WithoutTop20])
def test_a_signal_a_model_lacks_is_refused_before_any_work(serve: Any, make_probe: Any, engine: Any) -> None:
    given = engine().info.signals
    probe, base = make_probe(engine()), make_probe(engine(model="base"))
    with serve({"reference": probe, "base": base}) as server:
        for name, params in CASES:
            method = get_method(name)
            if expected_refusal(method, params) is not None or method.reads_prompt:
                continue
            parsed = method.parse(params)
            lacking = [each for each in method.reads(parsed) if each not in given] if method.needs(parsed) else []
            jobs = len(probe.jobs)
            response = server.post({"sequences": [{"token_ids": IDS}], "method": {"name": name, "params": params}})
            if not lacking:
                assert response.status_code == 200, response.text
                assert "error" not in response.json()["results"][0], response.text
                continue
            assert len(probe.jobs) == jobs
            message = response.json()["error"]["message"]
            assert message.startswith(f"method.name: {name!r} reads {lacking[0]} of the reference")
            assert f"model 'reference' (engine 'fake') gives {', '.join(given)}:" in message


def test_top20_is_computed_where_the_method_reads_it_and_returned_where_it_is_asked(
    serve: Any, make_probe: Any, arrays: Any
) -> None:
    probe = make_probe(FakeEngine())
    eaft = {"name": "eaft", "params": {"source": "reference"}}
    item = {"token_ids": IDS}
    with serve({"reference": probe}) as server:
        [silent] = server.score(item, method=eaft)
        [full] = server.score(item, method={"name": "eaft", "params": {"source": "reference", "entropy": "full"}})
        [asked] = server.score(item, method=eaft, signals=["entropy_top20", "entropy"])
    jobs: list[Job] = probe.jobs
    assert [job.top20 for job in jobs] == [True], "the store has it for the others"
    assert silent["signals"] == {}
    assert (full["cached"], asked["cached"]) == (True, True)
    assert silent["priorities"] == asked["priorities"] != full["priorities"]
    numbers = arrays(asked)
    np.testing.assert_allclose(numbers["priorities"][1:], numbers["entropy_top20"][1:] / 3, rtol=1e-6)
    np.testing.assert_allclose(arrays(full)["priorities"][1:], numbers["entropy"][1:] / 3, rtol=1e-6)


def test_the_listing_tells_which_methods_read_labels_and_rank_datasets(server: Any) -> None:
    listed = {
        info["name"]: info for info in server.http.get("/v1/methods", headers={"accept": wire.JSON}).json()["methods"]
    }
    assert list(listed) == list(METHODS)
    assert [name for name, info in listed.items() if info["labels"] == "inside"] == INSIDE
    assert listed["forgetting"]["calibrated"] is True
    assert listed["forgetting"]["schedule"]["sign"] == "negative"
    assert listed["t3s"]["verified"] == "second-hand"
