"""Every way a request or a sequence can be wrong: its type, its status, and a message naming field, value and limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from refusals import check
from tokenpriority import wire

GOOD = {"id": "good", "token_ids": [1, 2, 3]}
TALK = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": " yes "}]

ENVELOPE: dict[str, tuple[Any, int, str, list[str]]] = {
    "unknown field": ({"sequences": [GOOD], "colour": 1}, 422, "invalid_request", ["colour"]),
    "a temperature": (
        {"sequences": [GOOD], "temperature": 0.7}, 422, "invalid_request", ["unknown field", "`temperature`"],
    ),
    "no sequences": ({}, 422, "invalid_request", ["sequences"]),
    "empty sequences": ({"sequences": []}, 422, "invalid_request", ["sequences", ">= 1", "[]"]),
    "sequences of a wrong type": ({"sequences": 3}, 422, "invalid_request", ["sequences", "array", "3"]),
    "unknown model": ({"sequences": [GOOD], "model": "gpt"}, 404, "not_found", ["model", "'gpt'", "reference"]),
    "empty model": ({"sequences": [GOOD], "model": ""}, 422, "invalid_request", ["model", ">= 1", "''"]),
    "unknown method": (
        {"sequences": [GOOD], "method": {"name": "magic"}}, 404, "not_found", ["method.name", "'magic'", "uniform"],
    ),
    "unknown parameter": (
        {"sequences": [GOOD], "method": {"name": "prift_mass", "params": {"tua": 0.5}}},
        422, "invalid_parameter", ["method.params.tua", "0.5", "tau"],
    ),
    "parameter out of range": (
        {"sequences": [GOOD], "method": {"name": "prift_mass", "params": {"tau": 1.5}}},
        422, "invalid_parameter", ["method.params.tau", "1.5", "less than or equal to 1"],
    ),
    "parameter of a wrong type": (
        {"sequences": [GOOD], "method": {"name": "prift_mass", "params": {"tau": "high"}}},
        422, "invalid_parameter", ["method.params.tau", "'high'"],
    ),
    "dataset scope without threshold": (
        {"sequences": [GOOD], "method": {"name": "forgetting"}}, 422, "invalid_parameter", ["threshold", "calibrate"],
    ),
    "method of the live student": (
        {"sequences": [GOOD], "method": {"name": "dft"}},
        422, "invalid_parameter", ["method.name", "'dft'", "trainer"],
    ),
    "source student": (
        {"sequences": [GOOD], "method": {"name": "prift_prob", "params": {"source": "student"}}},
        422, "invalid_parameter", ["'prift_prob'", "trainer"],
    ),
    "unknown base": (
        {"sequences": [GOOD], "method": {"name": "token_cleaning", "params": {"base": "old"}}},
        404, "not_found", ["method.params.base", "'old'", "reference"],
    ),
    "base is the model itself": (
        {"sequences": [GOOD], "method": {"name": "token_cleaning", "params": {"base": "reference"}}},
        422, "invalid_parameter", ["method.params.base", "another model", "'reference'"],
    ),
    "unknown signal": (
        {"sequences": [GOOD], "signals": ["mood"]},
        422, "invalid_request", ["signals[0]", "logprob, entropy", "'mood'"],
    ),
}  # fmt: skip

ITEMS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "no form": ({}, "invalid_sequence", ["token_ids", "exactly one", "got none"]),
    "two forms": ({"token_ids": [1], "text": "a"}, "invalid_sequence", ["exactly one", "token_ids and text"]),
    "prompt alone": ({"prompt": "a"}, "invalid_sequence", ["prompt", "needs completion"]),
    "completion alone": ({"completion": "a"}, "invalid_sequence", ["completion", "needs prompt"]),
    "prompt and completion of two kinds": (
        {"prompt": "a", "completion": TALK}, "invalid_sequence", ["completion", "same kind"],
    ),
    "empty completion": ({"prompt": "ab", "completion": ""}, "invalid_sequence", ["completion", "no token"]),
    "unknown field": ({"token_ids": [1], "colour": 1}, "invalid_sequence", ["colour"]),
    "a temperature": ({"token_ids": [1], "temperature": 1.0}, "invalid_sequence", ["`temperature`"]),
    "text of a wrong type": ({"text": 5}, "invalid_sequence", ["text", "`str`", "5"]),
    "id out of vocabulary": (
        {"token_ids": [1, 2, 70_000]}, "invalid_sequence", ["token_ids[2]", "70000", "vocabulary size"],
    ),
    "negative id": ({"token_ids": [1, -2]}, "invalid_sequence", ["token_ids[1]", "-2", ">= 0"]),
    "id over 32 bits": ({"token_ids": [2**40]}, "invalid_sequence", ["token_ids[0]", str(2**40), "4294967295"]),
    "float id": ({"token_ids": [1.5]}, "invalid_sequence", ["token_ids[0]", "1.5"]),
    "empty token_ids": ({"token_ids": []}, "invalid_sequence", ["token_ids", "at least 1", "got 0"]),
    "over-long": ({"token_ids": [1] * 5000}, "invalid_sequence", ["token_ids", "max_model_len", "got 5000"]),
    "over-long text": ({"text": "a " * 9000}, "invalid_sequence", ["text", "max_model_len", "got"]),
    "mask too short": ({"token_ids": [1, 2, 3], "mask": [1, 1]}, "invalid_sequence", ["mask", "3", "got 2"]),
    "mask of a wrong value": ({"token_ids": [1], "mask": [2]}, "invalid_sequence", ["mask[0]", "<= 1", "2"]),
    "mask and score_from": (
        {"token_ids": [1], "mask": [1], "score_from": 0}, "invalid_sequence", ["mask", "score_from", "both"],
    ),
    "score_from beyond the end": (
        {"token_ids": [1, 2], "score_from": 3}, "invalid_sequence", ["score_from", "at most", "2", "got 3"],
    ),
    "negative score_from": ({"token_ids": [1], "score_from": -1}, "invalid_sequence", ["score_from", ">= 0", "-1"]),
    "token span outside": (
        {"token_ids": [1, 2], "spans": [{"start": 0, "end": 1, "priority": 1}, {"start": 1, "end": 9, "priority": 1}]},
        "invalid_sequence", ["spans[1].end", "2 tokens", "got 9"],
    ),
    "char span outside": (
        {"text": "abc", "spans": [{"start": 0, "end": 9, "priority": 1}]},
        "invalid_sequence", ["spans[0].end", "3 characters", "got 9"],
    ),
    "empty span": (
        {"text": "abc", "spans": [{"start": 2, "end": 2, "priority": 1}]},
        "invalid_sequence", ["spans[0].end", "greater than start 2", "got 2"],
    ),
    "span priority out of range": (
        {"text": "abc", "spans": [{"start": 0, "end": 2, "priority": -101}]},
        "invalid_sequence", ["spans[0].priority", "-100", "-101"],
    ),
    "too many spans": (
        {"token_ids": [1], "spans": [{"start": 0, "end": 1, "priority": 1}] * 4097},
        "invalid_sequence", ["spans", "at most 4096", "got 4097"],
    ),
    "char span on ids": (
        {"token_ids": [1, 2], "spans": [{"start": 0, "end": 1, "priority": 1, "unit": "char"}]},
        "invalid_sequence", ["spans[0].unit", "token_ids", "'char'"],
    ),
    "message on ids": (
        {"token_ids": [1, 2], "spans": [{"start": 0, "end": 1, "priority": 1, "message": 0}]},
        "invalid_sequence", ["spans[0].message", "unit 'char'", "got 0"],
    ),
    "message on text": (
        {"text": "ab", "spans": [{"start": 0, "end": 1, "priority": 1, "message": 0}]},
        "invalid_sequence", ["spans[0].message", "messages only", "got 0"],
    ),
    "messages span without message": (
        {"messages": TALK, "spans": [{"start": 0, "end": 1, "priority": 1}]},
        "invalid_sequence", ["spans[0].message", "required"],
    ),
    "message out of range": (
        {"messages": TALK, "spans": [{"start": 0, "end": 1, "priority": 1, "message": 2}]},
        "invalid_sequence", ["spans[0].message", "number of messages 2", "got 2"],
    ),
    "span beyond its message": (
        {"messages": TALK, "spans": [{"start": 0, "end": 9, "priority": 1, "message": 1}]},
        "invalid_sequence", ["spans[0].end", "messages[1].content", "5 characters", "got 9"],
    ),
    "no messages": ({"messages": []}, "invalid_sequence", ["messages", "at least 1", "got 0"]),
    "too many messages": ({"messages": TALK * 2049}, "invalid_sequence", ["messages", "at most 4096", "got 4098"]),
    "message without role": ({"messages": [{"content": "a"}]}, "invalid_sequence", ["messages[0].role", "None"]),
    "message the template refuses": ({"messages": [{"role": "user"}]}, "invalid_sequence", ["messages", "template"]),
    "no assistant": (
        {"messages": [{"role": "user", "content": "a"}]}, "invalid_sequence", ["messages", "assistant", "score_from"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("media", [wire.JSON, wire.MSGPACK])
@pytest.mark.parametrize("case", ENVELOPE)
def test_envelope(server: Any, case: str, media: str) -> None:
    body, status, kind, words = ENVELOPE[case]
    check(server.post(body, media=media, accept=wire.JSON), status, kind, words)


@pytest.mark.parametrize("media", [wire.JSON, wire.MSGPACK])
def test_items_fail_alone(torch_server: Any, media: str) -> None:
    """Every bad sequence at once, between good ones: each gets its own error, the good ones their scores."""
    sequences: list[dict[str, Any]] = [GOOD]
    for name, (item, _, _) in ITEMS.items():
        sequences += [{"id": name, **item}, GOOD]
    response = torch_server.post({"sequences": sequences}, media=media, accept=wire.JSON)
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [r["id"] for r in results] == [s["id"] for s in sequences]
    assert {tuple(r["priorities"]) for r in results if r["id"] == "good"} == {(0.0, 1.0, 1.0)}
    wrong = {}
    for result in results:
        if result["id"] == "good":
            continue
        _, kind, words = ITEMS[result["id"]]
        error = result["error"]
        if error["type"] != kind or any(word not in error["message"] for word in words) or len(result) != 2:
            wrong[result["id"]] = error
    assert wrong == {}
    assert response.json()["usage"]["tokens"] == 3 * (len(ITEMS) + 1)


def test_binary_arrays_are_checked_too(server: Any) -> None:
    sequences = [
        {"token_ids": b"\1\0\0"},
        {"token_ids": b""},
        {"token_ids": b"\xff\xff\xff\x7f"},
        {"token_ids": b"\1\0\0\0", "mask": b"\2"},
        {"token_ids": b"\1\0\0\0", "mask": b"\1\1"},
        {"token_ids": b"\1\0\0\0"},
    ]
    response = server.post({"sequences": sequences}, media=wire.MSGPACK, accept=wire.JSON)
    messages = [r.get("error", {}).get("message") for r in response.json()["results"]]
    for message, words in zip(messages, ["3 bytes", "got 0", "2147483647", "mask[0]", "got 2", None], strict=True):
        assert message is None if words is None else words in message


def test_an_items_id_survives_its_error(server: Any) -> None:
    results = server.score(
        {"id": "mine", "text": 3}, {"id": 5.5, "token_ids": [1]}, {"id": 10**30, "token_ids": [1]}, 7
    )
    assert [r["id"] for r in results] == ["mine", 1, 2, 3]
    assert "id" in results[1]["error"]["message"]
    assert str(10**30) in results[2]["error"]["message"]
    assert "18446744073709551615" in results[2]["error"]["message"]


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"{", wire.JSON),
        (b"", wire.JSON),
        (b'{"sequences": [{"token_ids": [1]}]} trailing', wire.JSON),
        (b'{"sequences": ' + b"[" * 100_000, wire.JSON),
        (b"\xff\xfe", wire.JSON),
        (b"\x81", wire.MSGPACK),
        (b"\xc1", wire.MSGPACK),
        (msgspec.msgpack.encode({"sequences": [GOOD]})[:-3], wire.MSGPACK),
        (b"\x91" * 100_000, wire.MSGPACK),
    ],
)
def test_malformed_bodies(server: Any, body: bytes, media: str) -> None:
    check(server.post(body, media=media, accept=wire.JSON), 400, "malformed_body", [media])


def test_headers_that_cannot_be_served(server: Any) -> None:
    good = {"sequences": [GOOD]}
    plain = wire.encode(good, wire.JSON)
    bare = server.http.post("/v1/priorities", content=plain)
    check(bare, 422, "invalid_request", ["Content-Type", wire.MSGPACK, "got none"])
    check(server.post(plain, media="text/csv"), 422, "invalid_request", ["Content-Type", "text/csv"])
    check(server.post(good, accept="text/html"), 422, "invalid_request", ["Accept", wire.JSON, "'text/html'"])
    check(server.post(good, accept="*/*;q=x"), 422, "invalid_request", ["Accept", "q", "'x'"])
    check(server.post(good, **{"content-encoding": "gzip"}), 422, "invalid_request", ["Content-Encoding", "gzip"])


def test_routes_that_are_not(server: Any) -> None:
    check(server.http.get("/nowhere"), 404, "not_found", ["GET /nowhere"])
    response = server.http.get("/v1/priorities")
    check(response, 405, "not_found", ["GET /v1/priorities"])
    assert response.headers["allow"] == "POST"


def test_errors_come_in_the_accepted_format(server: Any, decode: Callable[..., Any]) -> None:
    response = server.post({"sequences": []}, accept=wire.MSGPACK)
    assert response.headers["content-type"] == wire.MSGPACK
    assert decode(response)["error"]["type"] == "invalid_request"
