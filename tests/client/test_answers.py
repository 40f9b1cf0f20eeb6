"""Answers that cannot be used as they are: too large, of another model, or not what the contract promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tokenpriority import Client, ContractBroken, FingerprintChanged, SequenceErrors, TooLarge


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, retries=0) as connected:
        yield connected


def test_413_splits_down_to_what_fits(server: Any, client: Client) -> None:
    server.max_sequences = 3
    results = client.score([[n, n + 1] for n in range(13)])
    assert [scores.token_ids.tolist() for scores in results] == [[n, n + 1] for n in range(13)]
    assert [scores.id for scores in results] == list(range(13))
    assert [len(r.sequences) for r in server.requests] == [13, 6, 3, 3, 7, 3, 4, 2, 2]


def test_413_for_one_sequence_is_its_failure_and_the_others_are_kept(server: Any, client: Client) -> None:
    async def no_long(server: Any, request: Any) -> Any:
        if sum(len(item.token_ids) for item in request.sequences) > 40:
            return await server.refusing(TooLarge("at most 10 tokens"))(server, request)
        return await server.score(request)

    server.always = no_long
    with pytest.raises(SequenceErrors) as caught:
        client.score([[1, 2], list(range(11)), [3, 4]])
    assert isinstance(caught.value.failures[1], TooLarge)
    assert [r.id if r else None for r in caught.value.results] == [0, None, 2]


def test_a_changed_model_is_never_mixed_in(server: Any, client: Client) -> None:
    client.score([[1, 2]])
    assert client.fingerprints == {"reference": "f0"}
    server.fingerprint = "f1"
    with pytest.raises(FingerprintChanged, match=r"'reference' had the fingerprint f0 .* now f1"):
        client.score([[1, 2]])
    client.score([[1, 2]], model="other")
    assert client.fingerprints == {"reference": "f0", "other": "f1"}


def test_a_changed_base_is_never_mixed_in(server: Any, client: Client) -> None:
    for fingerprint in ("b0", "b1"):
        base = {"name": "base", "fingerprint": fingerprint}
        server.faults.append(server.edited(lambda answer, base=base: answer.update(base=base)))
    client.score([[1, 2]])
    assert client.fingerprints == {"reference": "f0", "base": "b0"}
    with pytest.raises(FingerprintChanged, match=r"'base' had the fingerprint b0 .* now b1"):
        client.score([[1, 2]])


def test_a_change_in_the_middle_of_a_stream_is_raised_in_its_place(server: Any) -> None:
    with Client(server.url, max_inflight_tokens=400) as client:
        results = client.score_many([[n] * 100 for n in range(20)])
        next(results)
        server.fingerprint = "f1"
        with pytest.raises(FingerprintChanged):
            list(results)


def test_a_changed_method_is_never_mixed_in(server: Any, client: Client) -> None:
    client.score([[1, 2]])
    server.method_version = 2
    with pytest.raises(FingerprintChanged, match=r"'uniform' had version 1 .* now 2"):
        client.score([[1, 2]])


def test_a_run_can_begin_with_fingerprints_of_an_earlier_one(server: Any, client: Client) -> None:
    client.pin({"reference": "f0"})
    client.score([[1, 2]])
    with pytest.raises(FingerprintChanged):
        client.pin({"reference": "f9"})
    with Client(server.url, retries=0) as other:
        other.pin({"reference": "f9"})
        with pytest.raises(FingerprintChanged):
            other.score([[1, 2]])


def first(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda answer: answer["results"][0].update(changes)


def cut(name: str, count: int) -> Callable[[dict[str, Any]], None]:
    return lambda answer: answer["results"][0].update({name: answer["results"][0][name][:-count]})


def lacking(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda answer: answer["results"][0].pop(name)


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def ids(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


NAN = float("nan")
BROKEN: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda answer: answer["results"].pop(), "number of results: asked for 2, the server answered 1"),
    (lambda answer: answer["results"].reverse(), "results are out of order"),
    (
        lambda answer: answer["results"].__setitem__(
            0, {"id": 1, "error": {"type": "invalid_sequence", "message": "no"}}
        ),
        "sequence 0: its result has the id 1: results are out of order",
    ),
    (lambda answer: answer["model"].update(name="other"), "model: asked for 'reference', the server answered 'other'"),
    (lambda answer: answer["method"].update(name="dft"), "method: asked for 'uniform', the server answered 'dft'"),
    (lambda answer: answer.pop("results"), "not a PriorityResponse: .*results"),
    (cut("priorities", 4), "priorities: expected 3 numbers, got 8 bytes"),
    (cut("logprobs", 1), "logprobs: expected 3 numbers, got 11 bytes"),
    (cut("token_ids", 4), "token_ids: expected 3 numbers, got 8 bytes"),
    (first(token_ids=ids(1, 2, 4)), "token_ids differ from those that were sent"),
    (first(priorities=floats(0, NAN, 1)), "a priority is not finite"),
    (first(priorities=floats(0, float("inf"), 1)), "a priority is not finite"),
    (first(priorities=floats(1, 1, 1)), "index 0 has no prediction"),
    (first(logprobs=floats(-1, -1, -1)), "index 0 has no prediction"),
    (first(logprobs=floats(NAN, NAN, -1)), "a token has a priority but no log-probability"),
    (first(priorities=[0.0, 1.0]), "priorities: expected 3 numbers, got 2 numbers"),
    (lacking("priorities"), "priorities: missing"),
    (lacking("token_ids"), "token_ids: missing"),
]


@pytest.mark.parametrize(("edit", "message"), BROKEN)
def test_a_broken_answer_is_never_used(server: Any, client: Client, edit: Any, message: str) -> None:
    server.faults.append(server.edited(edit))
    with pytest.raises(ContractBroken, match=message):
        client.score([[1, 2, 3], [4, 5]])
    assert client.fingerprints == {}, "nothing of it counts, not even its model"


def test_signals_that_are_missing_are_noticed(client: Client) -> None:
    with pytest.raises(ContractBroken, match=r"signals: asked for \['rank'\], got \[\]"):
        client.score([[1, 2]], signals=["rank"])


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({}, "offsets: missing"),
        ({"offsets": ids(0, 1, 1)}, "offsets: expected 4 numbers"),
        ({"offsets": ids(0, 1, 1, 2)}, "text is missing"),
        ({"token_ids": b""}, "token_ids are empty"),
    ],
)
def test_offsets_that_are_missing_are_noticed(server: Any, client: Client, added: dict[str, Any], message: str) -> None:
    whole = {"id": 0, "token_ids": ids(7, 8), "logprobs": floats(NAN, -1), "priorities": floats(0, 1), "cached": False}
    server.faults.append(server.edited(lambda answer: answer.update(results=[{**whole, **added}])))
    with pytest.raises(ContractBroken, match=message):
        client.score(["ab"], offsets=True)


def test_an_answer_of_another_type_is_refused(server: Any, client: Client) -> None:
    server.faults.append(server.page(200))
    with pytest.raises(ContractBroken, match="the server answered text/html"):
        client.score([[1, 2]])
