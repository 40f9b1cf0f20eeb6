"""POST /v1/priorities in both formats: the same numbers, aligned as promised, with everything spelled out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tokenpriority import Client, FingerprintChanged, methods, schema, wire
from tokenpriority.evidence import SIGNALS

IDS = [72, 105, 32, 116, 104, 101, 114, 101]
OPTIONAL = ["logprob", "entropy", "top1_logprob", "rank", "mass_above", "mass_tied"]


def strip(value: Any) -> Any:
    """Binary arrays of either format as lists, NaN as None, so that formats compare."""
    if isinstance(value, dict):
        out = {}
        for key, each in value.items():
            if isinstance(each, bytes):
                array = wire.unpack(each, wire.U4 if key in ("token_ids", "offsets") else wire.F4, key)
                each = [None if x != x else x for x in array.tolist()]
            out[key] = strip(each)
        return out
    return [strip(each) for each in value] if isinstance(value, list) else value


def request(sequences: list[Any]) -> dict[str, Any]:
    return {
        "sequences": sequences,
        "method": {"name": "prift_mass", "params": {"tau": 0.3}},
        "signals": OPTIONAL,
    }


def test_all_four_pairs_of_formats_give_identical_answers(torch_server: Any, decode: Callable[..., Any]) -> None:
    answers = []
    for body_type, answer_type in itertools.product((wire.JSON, wire.MSGPACK), repeat=2):
        packed = body_type == wire.MSGPACK
        ids = np.array(IDS, "<u4").tobytes() if packed else IDS
        mask = bytes([0, 0, 1, 1, 0, 1, 1, 1]) if packed else [0, 0, 1, 1, 0, 1, 1, 1]
        body = request([{"id": "x", "token_ids": ids, "mask": mask}, {"text": "import os"}, {"token_ids": [10**6]}])
        response = torch_server.post(body, media=body_type, accept=answer_type)
        assert response.headers["content-type"] == answer_type
        answer = strip(decode(response))
        answer.pop("usage")
        for result in answer["results"]:
            result.pop("cached", None)
        answers.append(answer)
    assert answers[1:] == answers[:-1]
    assert len(answers[0]["results"]) == 3


def test_binary_arrays_may_come_as_base64_in_json_and_lists_in_msgpack(server: Any) -> None:
    plain = server.score({"token_ids": IDS})[0]
    import base64

    coded = server.score({"token_ids": base64.b64encode(np.array(IDS, "<u4").tobytes()).decode()})[0]
    listed = server.post({"sequences": [{"token_ids": IDS}]}, media=wire.MSGPACK, accept=wire.JSON).json()["results"][0]
    assert plain["logprobs"] == coded["logprobs"] == listed["logprobs"]


def test_numbers_are_the_engines_and_the_methods(torch_server: Any, arrays: Callable[..., Any]) -> None:
    import asyncio

    from tokenpriority_service.engines.engine import Job

    engine = torch_server.service.models.get("reference").engine
    rows = asyncio.run(engine.score([Job(np.array(IDS, np.uint32), 3)]))[0]
    response = torch_server.post(request([{"token_ids": IDS, "score_from": 3}]), accept=wire.MSGPACK)
    result = wire.decode(response.content, schema.PriorityResponse).results[0]
    got = arrays({"token_ids": result.token_ids, "logprobs": result.logprobs, "priorities": result.priorities,
                  "signals": result.signals})  # fmt: skip
    np.testing.assert_array_equal(got["logprobs"], rows[0])
    for name in OPTIONAL:
        np.testing.assert_array_equal(got[name], rows[SIGNALS.index(name)])
    mass = 1 - rows[SIGNALS.index("mass_above")] - rows[SIGNALS.index("mass_tied")]
    expected = [0.0] * 3 + [float(u >= 0.3) for u in mass[3:]]
    assert got["priorities"].tolist() == expected


@pytest.mark.parametrize(
    ("field", "scored"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"score_from": 0}, [1, 2, 3, 4, 5, 6, 7]),
        ({"score_from": 5}, [5, 6, 7]),
        ({"score_from": 8}, []),
        ({"mask": [1] * 8}, [1, 2, 3, 4, 5, 6, 7]),
        ({"mask": [1, 0, 0, 1, 0, 1, 0, 0]}, [3, 5]),
        ({"mask": [0] * 8}, []),
    ],
)
def test_alignment(server: Any, field: dict[str, Any], scored: list[int]) -> None:
    result = server.score({"token_ids": IDS, **field}, signals=["entropy"])[0]
    assert result["token_ids"] == IDS
    assert result["priorities"] == [float(i in scored) for i in range(8)]
    first = min(scored, default=8)
    for values in (result["logprobs"], result["signals"]["entropy"]):
        assert [value is not None for value in values] == [i >= first for i in range(8)]


def test_a_single_token_has_nothing_to_score(server: Any) -> None:
    result = server.score({"token_ids": [65]})[0]
    assert (result["logprobs"], result["priorities"], result["cached"]) == ([None], [0.0], False)


def test_the_method_is_answered_with_every_parameter_spelled_out(server: Any) -> None:
    answer = server.post({"sequences": [{"token_ids": IDS}], "method": {"name": "prift_mass"}}).json()
    assert answer["method"] == {
        "name": "prift_mass",
        "version": 1,
        "params": {"tau": 0.5, "ties": "strict", "source": "reference"},
    }
    info = server.service.models.get("reference").engine.info
    assert answer["model"] == {"name": "reference", "fingerprint": info.fingerprint}


def test_ids_default_to_the_index_and_order_is_kept(server: Any) -> None:
    results = server.score({"token_ids": [1, 2]}, {"id": "x", "token_ids": [3]}, {"id": 7, "token_ids": [4]})
    assert [r["id"] for r in results] == [0, "x", 7]
    assert [r["token_ids"] for r in results] == [[1, 2], [3], [4]]


def test_two_model_methods_read_both_engines(torch_server: Any) -> None:
    ids = list(range(20, 40))
    both = [
        np.array(torch_server.score({"token_ids": ids}, model=name)[0]["logprobs"][1:], float)
        for name in ("reference", "base")
    ]
    excess = both[0] - both[1]
    threshold = float(np.sort(excess)[9])
    for call, expected in (
        ({"name": "token_cleaning", "params": {"keep": 0.5}}, (np.argsort(np.argsort(-excess)) < 9).astype(float)),
        (
            {"name": "forgetting", "params": {"threshold": threshold}},
            np.where(excess >= np.float32(threshold), 1.0, -1.0),
        ),
    ):
        got = torch_server.score({"token_ids": ids}, method=call)[0]["priorities"]
        assert got == [0.0, *expected.tolist()], call


def test_every_model_that_scored_is_named_and_can_be_pinned(torch_server: Any) -> None:
    with Client(torch_server.url) as client:
        listed = {model.name: model.fingerprint for model in client.models()}
        client.score([[20, 21, 22]], method="token_cleaning")
        assert client.fingerprints == {name: listed[name] for name in ("reference", "base")}
        client.score([[20, 21, 22]])
    with Client(torch_server.url) as other:
        other.pin({"base": "0" * 32})
        with pytest.raises(FingerprintChanged, match="'base'"):
            other.score([[20, 21, 22]], method="token_cleaning")


def test_headers_usage_and_request_id(server: Any) -> None:
    ids = [200, 201, 202]
    response = server.post({"sequences": [{"token_ids": ids}, {"token_ids": []}]}, **{"x-request-id": "run-7:batch/3"})
    assert response.headers["x-request-id"] == "run-7:batch/3"
    assert response.headers["x-tokenpriority-tokens"] == "3"
    assert response.headers["x-tokenpriority-cached-tokens"] == "0"
    usage = response.json()["usage"]
    assert (usage["tokens"], usage["cached_tokens"]) == (3, 0)
    assert usage["queue_ms"] >= 0
    assert usage["engine_ms"] > 0
    odd = server.post({"sequences": [{"token_ids": ids}]}, **{"x-request-id": "a b" * 100}).headers["x-request-id"]
    assert len(odd) == 32


@pytest.mark.parametrize(
    ("accept", "body", "answer"),
    [
        (None, wire.JSON, wire.JSON),
        (None, wire.MSGPACK, wire.MSGPACK),
        ("*/*", wire.MSGPACK, wire.MSGPACK),
        ("application/*", wire.MSGPACK, wire.MSGPACK),
        ("application/x-msgpack", wire.JSON, wire.MSGPACK),
        ("application/json, application/x-msgpack;q=0.5", wire.MSGPACK, wire.JSON),
        ("application/json;q=0.1, application/x-msgpack;q=0.5", wire.JSON, wire.MSGPACK),
        ("text/html, */*;q=0.1", wire.JSON, wire.JSON),
        ("application/json;q=0, */*", wire.JSON, wire.MSGPACK),
    ],
)
def test_the_answers_format(server: Any, accept: str | None, body: str, answer: str) -> None:
    content = wire.encode({"sequences": [{"token_ids": [1]}]}, body)
    headers = {"content-type": f"{body}; charset=utf-8"}
    request = httpx.Request("POST", server.url + "/v1/priorities", content=content, headers=headers)
    if accept is not None:
        request.headers["accept"] = accept
    response = server.http.send(request)
    assert (response.status_code, response.headers["content-type"]) == (200, answer)


def test_the_other_routes(server: Any) -> None:
    http = server.http
    models = wire.decode(http.get("/v1/models").content, schema.ModelList, wire.JSON).models
    info = server.service.models.get("reference").engine.info
    assert [(m.name, m.ready, m.fingerprint, m.vocab_size) for m in models] == [
        ("reference", True, info.fingerprint, info.vocab_size)
    ]
    assert models[0].tokenizer
    packed = http.get("/v1/models", headers={"accept": wire.MSGPACK})
    assert wire.decode(packed.content, schema.ModelList).models == models
    listed = wire.decode(http.get("/v1/methods").content, schema.MethodList, wire.JSON)
    assert [m.name for m in listed.methods] == list(methods.METHODS)
    limits = wire.decode(http.get("/v1/limits").content, schema.Limits, wire.JSON)
    assert limits.max_sequences == server.service.settings.server.max_sequences
    assert limits.queued_tokens == 0
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready"}
