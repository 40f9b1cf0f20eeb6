"""What is sent again, after how long, and what is raised in the end; delays are recorded, not slept."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority import (
    ApiError,
    Client,
    ConnectionFailed,
    EngineFault,
    Forbidden,
    InternalError,
    InvalidSequence,
    Overloaded,
    ScoreFailure,
    Unauthorized,
    Unavailable,
    wire,
)
from tokenpriority.connection import Connection, Settings
from tokenpriority.delivery import deliver
from tokenpriority.errors import ERROR_TYPES
from tokenpriority.exchange import PRIORITIES, Call, build_request
from tokenpriority.pins import Pins
from tokenpriority.retry import next_delay, parse_retry_after, worth_retrying
from tokenpriority.sequences import encode_sequence

BODY = build_request([encode_sequence([1, 2, 3], 0)], Call("reference", "uniform"))
RETRIED = [408, 409, 429, 500, 502, 503, 504]
FINAL = [400, 401, 403, 404, 413, 422, 501, 505]


def send(server: Any, delays: list[float], retries: int = 8, timeout: float = 5.0) -> None:
    """One request through a connection whose sleep is recorded and not slept."""

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    async def main() -> None:
        settings = Settings(server.url, timeout=timeout, retries=retries)
        connection = Connection(settings, sleep=sleep, rng=random.Random(0))
        try:
            await connection.post("/v1/priorities", BODY, 3)
        finally:
            await connection.aclose()

    asyncio.run(main())


def test_delays_double_and_honour_retry_after(server: Any) -> None:
    server.faults.extend(
        [
            server.refusing(Unavailable("loading")),
            server.refusing(Overloaded("busy"), retry_after="3"),
            server.dropping,
            server.page(502),
            server.page(408),
            server.page(409),
            server.refusing(InternalError("bug")),
            server.refusing(Overloaded("busy"), retry_after="1000"),
        ]
    )
    delays: list[float] = []
    send(server, delays)
    assert len(server.requests) == 9
    expected = [0.5, 3.0, 1.0, 2.0, 4.0, 8.0, 8.0, 120.0]
    for number, (delay, full) in enumerate(zip(delays, expected, strict=True)):
        if number in (1, 7):  # named by the server: never earlier
            assert full <= delay <= 1.25 * full
        else:
            assert 0.75 * full <= delay <= full
    assert len({round(delay / full, 6) for delay, full in zip(delays, expected, strict=True)}) > 2, "no jitter"


def test_the_request_is_the_same_each_time(server: Any) -> None:
    server.faults.extend([server.dropping, server.page(503)])
    send(server, [])
    assert [wire.encode(request) for request in server.requests] == [wire.encode(server.requests[0])] * 3


def test_a_timeout_is_retried_and_the_server_notices(server: Any) -> None:
    server.faults.append(server.hanging)
    delays: list[float] = []
    send(server, delays, timeout=0.2)
    assert len(delays) == 1
    assert server.cancelled == 1


def test_after_all_retries_the_last_error_is_raised(server: Any) -> None:
    delays: list[float] = []
    server.always = server.dropping
    with pytest.raises(ConnectionFailed, match=r"/v1/priorities: no answer in 3 attempts \("):
        send(server, delays, retries=2)
    assert len(delays) == 2
    server.always = server.refusing(Unavailable("loading"))
    with pytest.raises(Unavailable, match="loading") as refused:
        send(server, delays, retries=2)
    assert len(delays) == 4
    assert refused.value.request_id == "req-1"


@pytest.mark.parametrize("kind", [kind for kind in ERROR_TYPES.values() if kind.status in FINAL])
def test_what_will_not_change_is_not_sent_again(server: Any, kind: type[ApiError]) -> None:
    delays: list[float] = []
    server.faults.append(server.refusing(kind("no")))
    with pytest.raises(kind, match="no") as caught:
        send(server, delays)
    assert delays == []
    assert type(caught.value) is kind


def test_which_statuses_are_worth_retrying() -> None:
    assert [status for status in RETRIED + FINAL if worth_retrying(status)] == RETRIED


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    assert parse_retry_after("1.5") == 1.5
    assert parse_retry_after(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert parse_retry_after(format_datetime(now - timedelta(seconds=90), usegmt=True), now) == 0
    assert parse_retry_after("-4") == 0
    for nothing in (None, "", "soon", "nan", "inf", "Mon, 23 Nov 2026 00:00:00 -0000"):
        assert parse_retry_after(nothing, now) is None


@given(st.integers(0, 10**6), st.none() | st.floats(0, 1e9), st.integers())
def test_delays_are_always_bounded(attempt: int, retry_after: float | None, seed: int) -> None:
    delay = next_delay(attempt, retry_after, random.Random(seed))
    if retry_after is None:
        assert 0.375 <= delay <= 8
    else:
        assert min(retry_after, 120) <= delay <= 150


def test_a_retried_call_ends_well(server: Any) -> None:
    server.faults.append(server.refusing(EngineFault("cuda")))
    with Client(server.url) as client:
        assert len(client.score([[1, 2], [3, 4]])) == 2
    assert len(server.requests) == 2


def delivered(server: Any, delays: list[float], retries: int) -> list[Any]:
    """Four items brought to the server; the results' ids, or their errors."""

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    async def main() -> list[Any]:
        connection = Connection(Settings(server.url, retries=retries), sleep=sleep, rng=random.Random(0))
        items = [encode_sequence([n + 1, 9], n) for n in range(4)]
        try:
            return await deliver(connection, PRIORITIES, items, Call("reference", "uniform"), Pins(), retries)
        finally:
            await connection.aclose()

    results = asyncio.run(main())
    assert [result.id for result in results] == [0, 1, 2, 3]
    return [r.error if isinstance(r, ScoreFailure) else r.token_ids.tolist() for r in results]


def failing(server: Any, **kinds: type[ApiError]) -> Any:
    """A fault: a 200 answer in which the sequences of these ids (n1 is 1) failed."""

    def edit(answer: dict[str, Any]) -> None:
        for result in answer["results"]:
            if kind := kinds.get(f"n{result['id']}"):
                name = result["id"]
                result.clear()
                result.update(id=name, error={"type": kind.type, "message": "no"})

    return server.edited(edit)


def sent(server: Any) -> list[list[int]]:
    return [[item.id for item in request.sequences] for request in server.requests]


def test_sequences_the_engine_failed_on_are_sent_again_alone(server: Any) -> None:
    server.faults.append(failing(server, n0=EngineFault, n2=InvalidSequence, n3=Unavailable))
    server.faults.append(failing(server, n3=EngineFault))
    delays: list[float] = []
    first, second, refused, last = delivered(server, delays, retries=8)
    assert [first, second, last] == [[1, 9], [2, 9], [4, 9]]
    assert type(refused) is InvalidSequence
    assert sent(server) == [[0, 1, 2, 3], [0, 3], [3]]
    for delay, full in zip(delays, [0.5, 1.0], strict=True):
        assert 0.75 * full <= delay <= full


@pytest.mark.parametrize("retries", [0, 3])
def test_an_engine_that_fails_for_ever_is_that_sequences_failure(server: Any, retries: int) -> None:
    server.always = failing(server, n1=EngineFault)
    delays: list[float] = []
    first, failed, *others = delivered(server, delays, retries)
    assert type(failed) is EngineFault
    assert [first, *others] == [[1, 9], [3, 9], [4, 9]]
    assert sent(server) == [[0, 1, 2, 3]] + [[1]] * retries
    assert len(delays) == retries


def test_a_server_that_fails_on_all_that_is_sent_again_costs_no_other_scores(server: Any) -> None:
    server.faults.append(failing(server, n1=EngineFault))
    server.always = server.refusing(EngineFault("cuda"))
    delays: list[float] = []
    first, failed, *others = delivered(server, delays, retries=3)
    assert type(failed) is EngineFault
    assert str(failed) == "cuda (request req-1)"
    assert [first, *others] == [[1, 9], [3, 9], [4, 9]]
    assert sent(server) == [[0, 1, 2, 3]] + [[1]] * 3, "the attempts of both kinds count together"
    assert len(delays) == 3


def test_what_refuses_the_call_is_raised_when_sent_again_too(server: Any) -> None:
    server.faults.append(failing(server, n1=EngineFault))
    server.always = server.refusing(Forbidden("no more"))
    with pytest.raises(Forbidden, match="no more"):
        delivered(server, [], retries=3)


def test_a_proxys_page_is_told_by_status_and_words(server: Any) -> None:
    with Client(server.url, retries=0) as client:
        server.faults.append(server.page(403, x_request_id="proxy-9"))
        with pytest.raises(Forbidden, match=r"HTTP 403: <p>Bad gateway</p> \(request proxy-9\)"):
            client.score([[1, 2]])
        server.faults.append(server.page(401, ""))
        with pytest.raises(Unauthorized, match=r"^HTTP 401$"):
            client.score([[1, 2]])


def test_a_model_that_will_never_be_ready_ends_the_wait(server: Any) -> None:
    server.model_error = "no such folder"
    with Client(server.url) as client:
        assert not client.ready()
        with pytest.raises(Unavailable, match="model 'reference': no such folder"):
            client.wait_until_ready(600)
