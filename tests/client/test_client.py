"""The synchronous and the asynchronous client against the real service: what comes back is what the engine says."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest

from tokenpriority import (
    AsyncClient,
    Client,
    ConnectionFailed,
    InvalidParameter,
    InvalidSequence,
    NotFound,
    ScoreFailure,
    Scores,
    SequenceErrors,
    Unauthorized,
)
from tokenpriority.evidence import SIGNALS
from tokenpriority.sequences import MAX_SEQUENCES
from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import Settings, TeamSettings
from tokenpriority_service.engines.engine import Job
from tokenpriority_service.engines.fake import FakeEngine

ENGINE = FakeEngine()
RNG = np.random.default_rng(7)
RAGGED = [RNG.integers(0, 256, int(n)) for n in RNG.integers(1, 60, 3 * MAX_SEQUENCES)]


@cache
def rows_of_all() -> list[np.ndarray[Any, Any]]:
    """[6, T] of each of RAGGED straight from the engine of the model `reference`."""
    rows = asyncio.run(ENGINE.score([Job(ids.astype(np.uint32)) for ids in RAGGED]))
    return [each for each in rows if isinstance(each, np.ndarray)]


def evidence(token_ids: Any) -> np.ndarray[Any, Any]:
    """[6, T] straight from the engine of the model `reference`."""
    [rows] = asyncio.run(ENGINE.score([Job(np.array(token_ids, np.uint32))]))
    assert isinstance(rows, np.ndarray)
    return rows


@pytest.fixture
def client(service: str) -> Iterator[Client]:
    with Client(service, retries=0) as connected:
        yield connected


def check(scores: Scores, token_ids: Any, number: int) -> None:
    rows = rows_of_all()[number]
    assert scores.id == number
    np.testing.assert_array_equal(scores.token_ids, token_ids)
    np.testing.assert_array_equal(scores.logprobs, rows[0])
    np.testing.assert_array_equal(scores.priorities, np.nan_to_num(np.exp(rows[0])).astype(np.float32))
    assert list(scores.signals) == ["rank", "entropy"]
    np.testing.assert_array_equal(scores.signals["rank"], rows[SIGNALS.index("rank")])
    np.testing.assert_array_equal(scores.signals["entropy"], rows[SIGNALS.index("entropy")])


def test_score_returns_the_engines_numbers_in_order(client: Client) -> None:
    results = client.score(RAGGED, method="prift_prob", signals=["rank", "entropy"])
    assert len(results) == len(RAGGED)
    for number, (scores, token_ids) in enumerate(zip(results, RAGGED, strict=True)):
        check(scores, token_ids, number)


def test_score_many_returns_the_engines_numbers_in_order(client: Client) -> None:
    results = client.score_many(iter(RAGGED), method="prift_prob", signals=("rank", "entropy"))
    for number, (scores, token_ids) in enumerate(zip(results, RAGGED, strict=True)):
        check(scores, token_ids, number)


def test_the_async_client_gives_the_same(service: str) -> None:
    async def both() -> tuple[list[Scores], list[Scores]]:
        async with AsyncClient(service) as client:
            at_once = await client.score(RAGGED, method="prift_prob", signals=["rank", "entropy"])
            one_by_one = client.score_many(RAGGED, method="prift_prob", signals=["rank", "entropy"])
            return at_once, [scores async for scores in one_by_one]

    at_once, one_by_one = asyncio.run(both())
    for results in (at_once, one_by_one):
        for number, (scores, token_ids) in enumerate(zip(results, RAGGED, strict=True)):
            check(scores, token_ids, number)


def test_one_async_client_serves_one_loop_after_another(service: str) -> None:
    client = AsyncClient(service)

    async def once() -> np.ndarray[Any, Any]:
        async with client:
            [scores] = await client.score([[1, 2, 3]])
            return scores.logprobs

    np.testing.assert_array_equal(asyncio.run(once()), asyncio.run(once()))


def test_no_sequences_give_no_scores(client: Client) -> None:
    assert client.score([]) == []
    assert list(client.score_many([])) == []


def test_errors_of_the_call_have_their_class(client: Client) -> None:
    with pytest.raises(NotFound, match="no_such"):
        client.score([[1, 2]], method="no_such")
    with pytest.raises(NotFound, match="nobody"):
        client.score([[1, 2]], model="nobody")
    with pytest.raises(InvalidParameter, match="tau") as caught:
        client.score([[1, 2]], method="prift_mass", params={"tau": np.float64(7)})
    assert caught.value.request_id
    with pytest.raises(InvalidParameter, match="cannot be encoded"):
        client.score([[1, 2]], method="prift_mass", params={"tau": object()})
    with pytest.raises(TypeError, match="signals: a list of names"):
        client.score([[1, 2]], signals="rank")
    with pytest.raises(ValueError, match="errors: must be one of raise, return"):
        client.score_many([[1, 2]], errors="ignore")  # type: ignore[call-overload]


@pytest.mark.parametrize("errors", ["raise", "return"])
def test_score_many_hands_out_all_before_a_failure(client: Client, errors: Any) -> None:
    sequences: list[Any] = [[1, 2], [3, 4], [5, 99999], [7, 8]]
    results = client.score_many(sequences, errors=errors)
    assert [next(results).id, next(results).id] == [0, 1]
    if errors == "raise":
        with pytest.raises(SequenceErrors, match=r"the failing one is number 2: .*99999") as caught:
            next(results)
        assert list(caught.value.failures) == [2]
        assert list(results) == []
    else:
        failure, last = results
        assert isinstance(failure, ScoreFailure)
        assert isinstance(failure.error, InvalidSequence)
        assert isinstance(last, Scores)
        assert [failure.id, last.id] == [2, 3]


def test_an_error_of_the_iterable_comes_after_what_preceded_it(client: Client) -> None:
    def sequences() -> Iterator[list[int]]:
        yield [1, 2]
        yield [3, 4]
        raise KeyError("disk")

    results = client.score_many(sequences())
    assert [next(results).id, next(results).id] == [0, 1]
    with pytest.raises(KeyError, match="disk"):
        next(results)


def test_models_methods_limits_ready(client: Client, service: str) -> None:
    assert {model.name for model in client.models()} == {"reference", "base"}
    assert "prift_mass" in {method.name for method in client.methods()}
    assert client.limits().max_sequences > 0
    assert client.ready()
    client.wait_until_ready(5)

    async def same() -> None:
        async with AsyncClient(service) as other:
            assert await other.models() == client.models()
            assert await other.methods() == client.methods()
            assert await other.limits() == client.limits()
            assert await other.ready()
            await other.wait_until_ready(5)

    asyncio.run(same())


def test_a_server_that_is_not_there() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client:
        assert not client.ready()
        with pytest.raises(ConnectionFailed, match=r"not ready within 0\.3 seconds"):
            client.wait_until_ready(0.3)
        with pytest.raises(ConnectionFailed, match="no answer in 1 attempts"):
            client.score([[1, 2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url: must start with http"),
        ({"timeout": 0}, "timeout: must be greater than 0, got 0"),
        ({"max_inflight_tokens": 0}, "max_inflight_tokens: must be greater than 0"),
        ({"retries": -1}, "retries: must be greater than -1"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client(**{"url": "http://x", **options})


def test_threads_share_a_client(client: Client) -> None:
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        results[number] = client.score([[number, number + 1]] * 3)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        for scores in results[number]:
            np.testing.assert_array_equal(scores.token_ids, [number, number + 1])


def test_a_pickled_client_works_and_keeps_its_pins(client: Client) -> None:
    client.score([[1, 2]])
    with pickle.loads(pickle.dumps(client)) as copy:
        assert copy.fingerprints == client.fingerprints
        np.testing.assert_array_equal(copy.score([[1, 2]])[0].logprobs, evidence([1, 2])[0])
    remote = AsyncClient("http://127.0.0.1:9", api_key="secret")
    assert pickle.loads(pickle.dumps(remote)).settings == remote.settings
    assert "secret" not in repr(remote.settings)


def test_a_closed_client_says_so(service: str) -> None:
    client = Client(service)
    client.score([[1, 2]])
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.score([[1, 2]])


def test_the_key_and_a_transport_of_ones_own() -> None:
    """The real application in process, with a team; a key may be any text."""
    teams = {"alpha": TeamSettings(key_sha256=hashlib.sha256("clé".encode()).hexdigest())}
    transport = httpx.ASGITransport(create_app(Settings(teams=teams), engines={"reference": ENGINE}))
    with Client("http://inside", api_key="clé", transport=transport) as client:
        assert client.limits().queued_tokens == 0
    with Client("http://inside", api_key="other", transport=transport) as client, pytest.raises(Unauthorized):
        client.limits()


def test_progress_shows_a_bar(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(client.score_many(RAGGED[:10], progress=True))) == 10
    tokens = sum(len(ids) for ids in RAGGED[:10])
    assert f"10/10 sequences, {tokens:,} tokens" in " ".join(capsys.readouterr().err.split())
