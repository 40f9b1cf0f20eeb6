"""How much is stored: asked in groups, summed exactly, and none of a wrong answer used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from tokenpriority import (
    AsyncClient,
    Client,
    ContractBroken,
    Coverage,
    Covered,
    FingerprintChanged,
    Forbidden,
    NotStored,
    ScoreFailure,
    SequenceErrors,
    Unavailable,
)
from tokenpriority.sequences import MAX_SEQUENCES

RNG = np.random.default_rng(5)
RAGGED = [RNG.integers(0, 999, int(n)) for n in RNG.integers(1, 60, 5 * MAX_SEQUENCES + 7)]
EXPECTED = tuple(Covered(n, len(ids), len(ids) if n % 2 == 0 else len(ids) // 2) for n, ids in enumerate(RAGGED))


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, retries=2) as connected:
        yield connected


def check(coverage: Coverage) -> None:
    assert coverage.items == EXPECTED
    assert coverage.tokens == sum(len(ids) for ids in RAGGED)
    assert coverage.stored_tokens == sum(item.stored_tokens for item in EXPECTED)
    assert coverage.stored_sequences == sum(item.stored_tokens == item.tokens for item in EXPECTED)
    assert (coverage.failed_sequences, coverage.complete) == (0, False)


def test_a_large_set_is_asked_in_groups_and_summed(server: Any, client: Client) -> None:
    server.faults.extend([server.refusing(Unavailable("full")), server.dropping])
    server.max_sequences = 40
    check(client.coverage(iter(RAGGED)))
    assert max(len(request.sequences) for request in server.requests) <= MAX_SEQUENCES
    assert len(server.requests) > len(RAGGED) / MAX_SEQUENCES


def test_the_async_client_gives_the_same(server: Any) -> None:
    async def main() -> Coverage:
        async with AsyncClient(server.url) as client:
            return await client.coverage(RAGGED)

    check(asyncio.run(main()))


def test_tokens_in_flight_are_bounded(server: Any) -> None:
    server.seconds = 0.01
    with Client(server.url, max_inflight_tokens=1000) as client:
        check(client.coverage(RAGGED))
    assert server.most_tokens <= 1000
    assert server.most_requests >= 2, "nothing overlapped"


def test_the_question_is_that_of_score(server: Any, client: Client) -> None:
    client.coverage([[1, 2]], method="prift_mass", params={"tau": 0.1}, signals=["rank"])
    [request] = server.requests
    assert (request.method.name, request.method.params, request.signals) == ("prift_mass", {"tau": 0.1}, ["rank"])
    assert not request.cached_only


def test_equal_sequences_count_each_and_are_sent_once(server: Any, client: Client) -> None:
    coverage = client.coverage([[1, 2, 3]] * 5 + [[4, 5]])
    assert (coverage.tokens, coverage.stored_tokens) == (17, 5 * 3 + 1)
    assert [item.id for item in coverage.items] == [0, 1, 2, 3, 4, 5]
    assert len(server.requests[0].sequences) == 2


def test_what_cannot_be_scored_is_an_item_of_its_own(client: Client) -> None:
    coverage = client.coverage([[1, 2], [], {"token_ids": [1.5, 2.5], "id": "x"}, [7, 8]])
    assert coverage.items[0] == Covered(0, 2, 2)
    assert [item.id for item in coverage.items] == [0, 1, "x", 3]
    assert [isinstance(item, ScoreFailure) for item in coverage.items] == [False, True, True, False]
    assert (coverage.tokens, coverage.stored_tokens) == (4, 3)
    assert (coverage.stored_sequences, coverage.failed_sequences) == (1, 2)
    assert not Coverage.of(coverage.items[:2]).complete, "an item that cannot be scored is not stored"
    assert Coverage.of(coverage.items[:1]).complete


def test_nothing_is_covered_whole(client: Client) -> None:
    assert client.coverage([]) == Coverage((), 0, 0, 0, 0)
    assert client.coverage([]).complete


def test_coverage_is_read_only(client: Client) -> None:
    coverage = client.coverage([[1, 2]])
    with pytest.raises(FrozenInstanceError):
        coverage.tokens = 9  # type: ignore[misc]


def test_an_error_of_the_call_is_raised_and_one_of_the_iterable_too(server: Any, client: Client) -> None:
    def broken() -> Iterator[list[int]]:
        yield [1, 2]
        raise KeyError("no file")

    with pytest.raises(KeyError, match="no file"):
        client.coverage(broken())
    with pytest.raises(TypeError, match="several are expected"):
        client.coverage("one text")
    server.faults.append(server.refusing(Forbidden("not yours")))
    with pytest.raises(Forbidden, match="not yours"):
        client.coverage([[1, 2]])


def test_another_model_is_never_mixed_in(server: Any, client: Client) -> None:
    client.score([[1, 2]])
    server.fingerprint = "f1"
    with pytest.raises(FingerprintChanged):
        client.coverage([[1, 2]])


def swap(answer: dict[str, Any]) -> None:
    answer["results"].reverse()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda answer: answer["results"].pop(), "number of results: asked for 2, the server answered 1"),
        (lambda answer: answer["model"].update(name="other"), "model: asked for 'reference'"),
        (swap, "out of order"),
        (lambda answer: answer["results"][0].pop("stored_tokens"), "0: UNSET of 3 tokens cannot be stored"),
        (lambda answer: answer["results"][0].update(stored_tokens=4), "0: 4 of 3 tokens cannot be stored"),
        (lambda answer: answer["results"][0].update(stored_tokens=-1), "0: -1 of 3 tokens cannot be stored"),
        (lambda answer: answer["results"][0].update(tokens=5), "0: 3 tokens were sent, the server says 5"),
        (lambda answer: answer.update(tokens=4), "sums of the coverage"),
        (lambda answer: answer.pop("sequences"), "not a CoverageResponse"),
    ],
)
def test_a_wrong_answer_is_not_used(server: Any, client: Client, edit: Callable[[Any], Any], message: str) -> None:
    server.faults.append(lambda server, request: server.cover(request, edit))
    with pytest.raises(ContractBroken, match=message):
        client.coverage([[1, 2, 3], [4, 5]])


def not_stored(answer: dict[str, Any]) -> None:
    name = answer["results"][1]["id"]
    answer["results"][1] = {"id": name, "error": {"type": "not_stored", "message": "not stored: 2 of 3 tokens"}}


def test_what_is_not_stored_is_that_sequences_error_and_not_sent_again(server: Any, client: Client) -> None:
    server.faults.append(server.edited(not_stored))
    with pytest.raises(SequenceErrors) as caught:
        client.score([[1, 2], [3, 4, 5]], cached_only=True)
    assert caught.value.results[0].token_ids.tolist() == [1, 2]
    assert isinstance(caught.value.failures[1], NotStored)
    assert [request.cached_only for request in server.requests] == [True]

    server.faults.append(server.edited(not_stored))
    _, second = client.score_many([[1, 2], [3, 4, 5]], cached_only=True, errors="return")
    assert isinstance(second, ScoreFailure)
    assert str(second.error) == "not stored: 2 of 3 tokens"
    server.faults.append(server.edited(not_stored))
    with client.prefetch([[[1, 2], [3, 4]]], cached_only=True) as batches, pytest.raises(SequenceErrors):
        next(batches)
    assert [request.cached_only for request in server.requests] == [True] * 3


def test_who_waits_is_said_with_every_request(server: Any) -> None:
    for made, expected in ((Client(server.url), "interactive"), (Client(server.url, service_class="bulk"), "bulk")):
        server.requests.clear()
        with made as client:
            client.score([[1, 2]])
            list(client.score_many([[1, 2]]))
            client.coverage([[1, 2]])
            with client.prefetch([[[1, 2]]]) as batches:
                next(batches)
        assert [request.service_class for request in server.requests] == [expected] * 4
    with pytest.raises(ValueError, match="service_class: must be one of interactive, bulk, got 'batch'"):
        Client(server.url, service_class="batch")  # type: ignore[arg-type]
