"""How much is under way at once, as the server sees it, and that nothing is under way once nobody wants it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority import AsyncClient, Client, Forbidden, ScoreFailure
from tokenpriority.connection import MAX_REQUESTS
from tokenpriority.errors import InvalidSequence
from tokenpriority.sequences import MAX_SEQUENCES, Entry, Item, encoded, grouped


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def first(request: Any) -> bool:
    return bool(request.sequences[0].id == 0)


@given(st.lists(st.none() | st.integers(0, 90), max_size=200), st.integers(1, 200))
def test_groups_keep_order_and_bounds(lengths: list[int | None], bound: int) -> None:
    failure = ScoreFailure(0, InvalidSequence("bad"))
    entries: list[Entry] = list(encoded([failure if n is None else [7] * n for n in lengths]))
    groups = list(grouped(iter(entries), bound))
    assert [entry for group in groups for entry in group] == entries
    for group in groups:
        assert 1 <= len(group) <= MAX_SEQUENCES
        sizes = [entry.tokens for entry in group if isinstance(entry, Item)]
        assert sum(sizes) <= bound or sum(size > 0 for size in sizes) == 1


@pytest.mark.parametrize("bound", [1000, 4000])
def test_tokens_in_flight_are_bounded(server: Any, bound: int) -> None:
    server.seconds = 0.02
    rng = np.random.default_rng(bound)
    sequences = [rng.integers(0, 1000, int(n)) for n in rng.integers(50, 240, 120)]
    with Client(server.url, max_inflight_tokens=bound) as client:
        results = list(client.score_many(sequences))
    assert [r.token_ids.tolist() for r in results] == [s.tolist() for s in sequences]
    assert server.most_tokens <= bound
    assert server.most_requests >= 2, "nothing overlapped"


def test_the_bound_holds_over_all_calls(server: Any) -> None:
    server.seconds = 0.02

    async def main() -> None:
        async with AsyncClient(server.url, max_inflight_tokens=500) as client:
            await asyncio.gather(*(client.score([list(range(60))] * 2 + [list(range(70, 170))]) for _ in range(20)))

    asyncio.run(main())
    assert server.most_tokens <= 500
    assert server.most_requests >= 2


def test_requests_in_flight_are_bounded(server: Any) -> None:
    server.seconds = 0.02

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            await asyncio.gather(*(client.score([[n, n]]) for n in range(60)))

    asyncio.run(main())
    assert server.most_requests == MAX_REQUESTS


def test_one_sequence_larger_than_the_bound_goes_alone(server: Any) -> None:
    server.seconds = 0.01
    with Client(server.url, max_inflight_tokens=100) as client:
        lengths = [10, 300, 10, 10, 200]
        results = client.score([list(range(n)) for n in lengths])
    assert [len(r.token_ids) for r in results] == lengths
    assert server.most_tokens == 300


def test_equal_sequences_are_sent_once(server: Any) -> None:
    with Client(server.url) as client:
        results = client.score([[1, 2], [3, 4], np.array([1, 2]), {"token_ids": [1, 2], "id": "x"}])
        assert [r.id for r in results] == [0, 1, 2, "x"]
        assert [r.token_ids.tolist() for r in results] == [[1, 2], [3, 4], [1, 2], [1, 2]]
        client.score([{"token_ids": [1, 2]}, {"token_ids": [1, 2], "score_from": 2}])
    assert [len(request.sequences) for request in server.requests] == [2, 2]


def test_score_many_reads_no_further_than_its_bound(server: Any) -> None:
    read = 0

    def endless() -> Iterator[list[int]]:
        nonlocal read
        while True:
            read += 1
            yield [read] * 100

    server.always = server.hanging_unless(first)
    with Client(server.url, max_inflight_tokens=1000) as client:
        results = client.score_many(endless())
        assert next(results).token_ids[0] == 1
        results.close()
    assert read <= 1000 // 100 + 2 * 3, "one group of 250 tokens beyond the bound, and the one being read"


def test_stopping_early_cancels_what_is_under_way(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    server.always = server.hanging_unless(first)
    with Client(server.url, max_inflight_tokens=1000) as client:
        results = client.score_many([[n] * 200 for n in range(50)])
        next(results)
        results.close()
        until(lambda: server.requests_in_flight == 0)
        server.always = None
        assert len(client.score([[1, 2]])) == 1, "the client itself goes on"
    assert caplog.records == []


def test_stopping_an_async_stream_early_cancels_what_is_under_way(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.always = server.hanging_unless(first)

    async def main() -> None:
        async with AsyncClient(server.url, max_inflight_tokens=1000) as client:
            results = client.score_many([[n] * 200 for n in range(50)])
            await anext(results)
            await results.aclose()
            await asyncio.to_thread(until, lambda: server.requests_in_flight == 0)

    asyncio.run(main())
    assert caplog.records == []


def test_a_failure_of_the_call_ends_score_many_and_cancels_the_rest(server: Any) -> None:

    async def second_is_refused(server: Any, request: Any) -> Any:
        second = request.sequences[0].id == 1
        handler = server.refusing(Forbidden("not yours")) if second else server.hanging_unless(first)
        return await handler(server, request)

    server.always = second_is_refused
    with Client(server.url, max_inflight_tokens=1000, retries=0) as client:
        results = client.score_many([[n] * 200 for n in range(50)])
        assert next(results).id == 0
        with pytest.raises(Forbidden, match="not yours"):
            next(results)
        until(lambda: server.requests_in_flight == 0)


def test_a_failure_of_one_request_of_a_call_cancels_the_others(server: Any) -> None:
    server.always = server.hanging
    server.faults.append(server.refusing(Forbidden("not yours")))
    with Client(server.url, max_inflight_tokens=1000, retries=0) as client:
        with pytest.raises(Forbidden, match="not yours"):
            client.score([[n] * 200 for n in range(50)])
        until(lambda: server.requests_in_flight == 0)


def test_closing_while_another_thread_waits_is_told(server: Any) -> None:
    server.always = server.hanging
    client = Client(server.url)
    caught: list[Exception] = []

    def wait() -> None:
        try:
            client.score([[1, 2]])
        except RuntimeError as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: server.requests)
    client.close()
    waiting.join()
    assert str(caught[0]) == "the client is closed"
