"""Identical work once, bounded queues, clients that hang up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tokenpriority_service.configuration.settings import ServerSettings, Settings
from tokenpriority_service.engines.fake import FakeEngine


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def waiting(server: Any) -> int:
    """How many sequences, over all requests, wait for work in progress."""
    pending = server.service.models.get("reference").dispatcher._pending
    return sum(work.waiters for work in list(pending.values()))


def test_concurrent_identical_requests_compute_once(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None]
) -> None:
    with serve({"reference": probe}) as server:
        probe.release.clear()
        body = {"sequences": [{"token_ids": [1, 2, 3]}, {"token_ids": [4, 5]}, {"token_ids": [1, 2, 3]}]}
        answers = [pool.submit(server.post, body) for _ in range(8)]
        wait_until(lambda: waiting(server) == 24, "8 requests at work")
        assert server.service.admission.queued_tokens == 5
        probe.release.set()
        results = [answer.result().json()["results"] for answer in answers]
        assert all(result == results[0] for result in results)
        assert [job.token_ids.tolist() for job in probe.jobs] == [[1, 2, 3], [4, 5]]
        assert server.service.admission.queued_tokens == 0


def test_a_narrower_request_joins_a_wider_one_and_not_the_reverse(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None]
) -> None:
    with serve({"reference": probe}) as server:
        probe.release.clear()
        ids = list(range(10))
        futures = []
        for number, score_from in enumerate((5, 8, 2)):
            body = {"token_ids": ids, "score_from": score_from}
            futures.append(pool.submit(server.score, body))
            # The widest takes the others' place in the dispatcher, so it waits there alone.
            wait_until(lambda n=(1, 2, 1)[number]: waiting(server) == n, "the request")
        assert server.service.admission.queued_tokens == 20
        probe.release.set()
        five, eight, two = (future.result()[0]["logprobs"] for future in futures)
        assert [job.score_from for job in probe.jobs] == [5, 2]
        assert five == [None] * 5 + two[5:]
        assert eight == [None] * 8 + two[8:]


def test_the_same_sequence_twice_is_computed_once_and_widely(serve: Any, probe: Any) -> None:
    with serve({"reference": probe}) as server:
        ids = list(range(10))
        results = server.score({"token_ids": ids, "score_from": 7}, {"token_ids": ids, "score_from": 3})
        assert [job.score_from for job in probe.jobs] == [3]
        assert [x is None for x in results[0]["logprobs"]] == [i < 7 for i in range(10)]
        assert results[0]["logprobs"][7:] == results[1]["logprobs"][7:]


def test_equal_weights_under_two_names_are_refused(serve: Any, make_probe: Callable[..., Any]) -> None:
    """Under one model every excess is 0, and a ranking of zeros would be by position: an error, not a mask."""
    with serve({name: make_probe(FakeEngine()) for name in ("reference", "base")}) as server:
        body = {"sequences": [{"token_ids": list(range(9))}], "method": {"name": "token_cleaning"}}
        response = server.post(body)
        assert response.status_code == 422
        assert "'base' and 'reference' have one fingerprint" in response.json()["error"]["message"]


def test_overload_is_refused_at_once_with_the_time_to_come_back(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None]
) -> None:
    limits = ServerSettings(max_request_tokens=50, max_queued_tokens=100)
    with serve({"reference": probe}, Settings(server=limits)) as server:
        assert server.post({"sequences": [{"token_ids": [9] * 10}]}).status_code == 200
        probe.release.clear()
        held = [pool.submit(server.post, {"sequences": [{"token_ids": [n] * 40}]}) for n in (1, 2)]
        wait_until(lambda: server.service.admission.queued_tokens == 80, "80 queued tokens")
        assert server.http.get("/v1/limits").json()["queued_tokens"] == 80
        refused = server.post({"sequences": [{"token_ids": [3] * 30}]})
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert error["type"] == "unavailable"
        assert "80" in error["message"]
        assert "100" in error["message"]
        assert "30" in error["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        # What fits is taken; what is already being computed or stored costs nothing.
        joined = pool.submit(server.post, {"sequences": [{"token_ids": [1] * 40}]})
        assert server.post({"sequences": [{"token_ids": [9] * 10}]}).status_code == 200
        probe.release.set()
        assert [each.result().status_code for each in [*held, joined]] == [200, 200, 200]
        assert server.post({"sequences": [{"token_ids": [3] * 30}]}).status_code == 200


def test_a_client_that_hangs_up_cancels_its_work(
    serve: Any,
    probe: Any,
    wait_until: Callable[..., None],
    hang_up: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "tokenpriority_service")
    with serve({"reference": probe}) as server:
        probe.release.clear()
        hang_up(
            server,
            {"sequences": [{"token_ids": [1, 2, 3]}]},
            lambda: wait_until(lambda: bool(probe.jobs), "the job in the engine"),
        )
        wait_until(lambda: probe.cancelled == 1, "the cancelled call")
        wait_until(lambda: server.service.admission.queued_tokens == 0, "the freed tokens")
        wait_until(lambda: server.service.gate.active == 0, "the end of the request")
        wait_until(
            lambda: any(getattr(record, "fields", {}).get("status") == 499 for record in caplog.records),
            "its line in the log",
        )
        probe.release.set()
        assert server.score({"token_ids": [1, 2, 3]})[0]["cached"] is False


def test_work_others_wait_for_outlives_a_client_that_hangs_up(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None], hang_up: Callable[..., None]
) -> None:
    with serve({"reference": probe}) as server:
        probe.release.clear()
        other: list[Any] = []

        def join() -> None:
            wait_until(lambda: bool(probe.jobs), "the job in the engine")
            other.append(pool.submit(server.score, {"token_ids": [1, 2, 3]}))
            wait_until(lambda: waiting(server) == 3, "the second request")

        hang_up(server, {"sequences": [{"token_ids": [1, 2, 3]}, {"token_ids": [4, 5]}]}, join)
        wait_until(lambda: waiting(server) == 1, "the first one's end")
        probe.release.set()
        assert other[0].result()[0]["priorities"] == [0, 1, 1]
        assert probe.cancelled == 0
        assert len(probe.jobs) == 2
