"""A server that says when to come back is obeyed, within a bound of its own; delays are recorded, not slept."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority import (
    ApiError,
    Client,
    ConnectionFailed,
    EngineFault,
    InternalError,
    Overloaded,
    ServerAway,
    TokenPriorityError,
    Unavailable,
)
from tokenpriority.connection import Connection, Settings
from tokenpriority.exchange import Call, build_request
from tokenpriority.retry import Patience
from tokenpriority.sequences import encode_sequence

BODY = build_request([encode_sequence([1, 2, 3], 0)], Call("reference", "uniform"))


def send(server: Any, delays: list[float], **settings: Any) -> None:
    """One request through a connection whose sleep is recorded and not slept."""

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    async def main() -> None:
        connection = Connection(Settings(server.url, **settings), sleep=sleep, rng=random.Random(0))
        try:
            await connection.post("/v1/priorities", BODY, 3)
        finally:
            await connection.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [Overloaded, Unavailable])
def test_a_server_that_says_when_to_come_back_uses_up_no_attempt(server: Any, kind: type[ApiError]) -> None:
    put_off = [server.refusing(kind("later"), retry_after="60")] * 20
    server.faults.extend([server.dropping, *put_off, server.dropping])
    delays: list[float] = []
    send(server, delays, retries=2)
    assert len(server.requests) == 23
    assert all(60 <= delay <= 75 for delay in delays[1:21])
    for delay, full in zip((delays[0], delays[-1]), (0.5, 1.0), strict=True):
        assert 0.75 * full <= delay <= full, "the attempts before and after count on"


@pytest.mark.parametrize("kind", [Overloaded, Unavailable])
def test_the_time_for_which_a_request_is_put_off_is_bounded(server: Any, kind: type[ApiError]) -> None:
    server.always = server.refusing(kind("quota of team alpha"), retry_after="60")
    delays: list[float] = []
    with pytest.raises(kind, match="quota of team alpha") as refused:
        send(server, delays, max_wait=600.0)
    assert 600 - 75 < sum(delays) <= 600
    assert refused.value.retry_after == 60
    assert len(server.requests) == len(delays) + 1

    server.requests.clear()
    for settings in ({"max_wait": 59.0}, {"retries": 0}):
        with pytest.raises(kind):
            send(server, delays := [], **settings)
        assert delays == []
    assert len(server.requests) == 2


def test_an_engine_that_fails_is_no_server_that_puts_off(server: Any) -> None:
    server.always = server.refusing(EngineFault("cuda"), retry_after="1")
    delays: list[float] = []
    with pytest.raises(EngineFault):
        send(server, delays, retries=3)
    assert len(delays) == 3
    assert all(1 <= delay <= 1.25 for delay in delays)


@pytest.mark.parametrize("status", [None, 502, 503, 504])
def test_a_server_that_is_away_is_waited_for_by_time(server: Any, status: int | None) -> None:
    """It answers nothing, or a gateway in its place says so; what it fails at itself is still counted."""
    away = server.dropping if status is None else server.page(status)
    server.faults.extend([away] * 20 + [server.refusing(InternalError("a bug"))] * 2)
    delays: list[float] = []
    send(server, delays, retries=2, max_outage=600.0)
    assert len(server.requests) == 23

    server.requests.clear()
    server.always = away
    error: type[TokenPriorityError] = ConnectionFailed if status is None else ServerAway
    with pytest.raises(error, match="no answer in [0-9]{2} attempts" if status is None else f"HTTP {status}"):
        send(server, delays := [], max_outage=600.0)
    assert 600 - 20 < sum(delays) <= 600, "each attempt took a few milliseconds besides"
    assert len(server.requests) == len(delays) + 1

    server.requests.clear()
    for settings in ({"max_outage": 0.3}, {"max_outage": 600.0, "retries": 0}):
        with pytest.raises(error):
            send(server, delays := [], **settings)
        assert delays == []
    assert len(server.requests) == 2


@given(st.lists(st.floats(0, 200), max_size=60), st.floats(0, 1e3))
def test_the_time_of_the_attempts_themselves_counts(took: list[float], limit: float) -> None:
    patience, away = Patience(8, 3600, random.Random(0), max_outage=limit), 0.0
    for seconds in took:
        delay = patience.delay(took=seconds)
        if delay is None:
            assert away + seconds + 8 > limit
            break
        away += seconds + delay
    assert away <= limit
    assert patience.failed == 0


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=30), st.integers(0, 5), st.floats(0, 1e4), st.integers(0, 9))
def test_attempts_and_time_are_both_bounded(
    named: list[float | None], retries: int, max_wait: float, failed: int
) -> None:
    """However a server mixes its answers, by a count and a sum of their own."""
    patience = Patience(retries, max_wait, random.Random(0), failed)
    counted, waited = failed, 0.0
    for seconds in named:
        delay = patience.delay(Overloaded("no", retry_after=seconds))
        if delay is None:
            assert counted >= retries if seconds is None or not retries else waited + 1.25 * seconds + 0.5 > max_wait
            break
        if seconds is None:
            counted += 1
        else:
            assert delay >= max(0.5, min(seconds, 120))
            waited += delay
    assert counted <= max(retries, failed)
    assert waited <= max_wait


def test_a_wait_at_the_servers_word_is_logged_once_a_minute(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    server.faults.extend([server.refusing(Overloaded("quota of team alpha"), retry_after="3")] * 9)
    with caplog.at_level(logging.WARNING):
        send(server, [])
    assert [record.message for record in caplog.records] == ["waiting: Overloaded: quota of team alpha (request req-1)"]
    caplog.clear()
    server.faults.append(server.refusing(Overloaded("busy"), retry_after="3"))
    send(server, [])
    assert caplog.records == [], "a short wait is nobody's concern"


@pytest.mark.parametrize("name", ["max_wait", "max_outage"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_the_bound_is_a_number_of_seconds(name: str, seconds: float) -> None:
    settings: Any = {name: seconds}
    with pytest.raises(ValueError, match=f"{name}: must be at least 0, got"):
        Client("http://127.0.0.1:9", **settings)
