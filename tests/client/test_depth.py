"""Depth "auto": the rule against its own definition, and what it does for a consumer of a slow server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority import Client
from tokenpriority.depth import LIMIT, START, Depth


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, retries=0) as connected:
        yield connected


@given(st.floats(0.001, 10), st.lists(st.integers(0, 200), min_size=16, max_size=300))
def test_it_is_the_steps_of_the_99th_percentile_and_four(step: float, steps: list[int]) -> None:
    """Of a consumer of even steps, whose scores take between n and n + 1 of them."""
    depth = Depth("auto")
    values = [depth.value]
    for number, each in enumerate([10**6] * START + steps):  # what begins together at the start is not measured
        grown = depth.took(number * step, (each + 0.5) * step)
        values.append(values[-1] + grown)
        assert depth.value == values[-1]
    windows = [steps[max(0, n - 256) : n] for n in range(16, len(steps) + 1)]
    taken = [int(np.quantile(window, 0.99, method="inverted_cdf")) for window in windows]
    assert values[: START + 16] == [START] * (START + 16)
    # All that was taken so far may be fewer than what would be taken in so long a time.
    within = [min(value + 1, START + n, 256) for n, value in enumerate(taken, 16)]
    expected = np.maximum.accumulate([max(START, min(LIMIT, each + 4)) for each in within])
    assert values[START + 16 :] == expected.tolist()


def test_a_further_iteration_begins_with_the_depth_that_was_found() -> None:
    depth = Depth("auto")
    for number in range(START + 16):
        depth.took(float(number), 20.0)
    found = depth.value
    assert found > START
    assert depth.begin() == found
    for number in range(found):  # begun together, they wait for each other
        assert depth.took(100.0 + number, 1e6) == 0
    assert depth.took(100.0 + found, 1e6) > 0


def test_a_depth_that_was_given_stays() -> None:
    depth = Depth(3)
    assert [depth.took(0.0, 1.0) for _ in range(100)] == [0] * 100
    assert depth.value == 3


class OneAtATime:
    """A scorer that has one request at a time and `seconds` for each."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = asyncio.Lock()

    async def __call__(self, server: Any, request: Any) -> Any:
        async with self._lock:
            await asyncio.sleep(self._seconds)
        return await server.score(request)


def one_sequence_each() -> Iterator[list[list[int]]]:
    number = 0
    while True:
        yield [[number, 1]]
        number += 1


@pytest.mark.parametrize("depth", [8, "auto"])
def test_a_step_of_many_micro_batches_finds_them_all_ready(server: Any, client: Client, depth: Any) -> None:
    """Twenty are taken at once, then trained on for longer than the scorer needs for twenty."""
    micro, seconds = 20, 0.005
    server.always = OneAtATime(seconds)
    with client.prefetch(one_sequence_each(), sequences=list, depth=depth) as prefetch:
        waits = []
        for _ in range(5):
            before = prefetch.wait_seconds
            taken = list(islice(prefetch, micro))
            waits.append(prefetch.wait_seconds - before)
            deadline = time.monotonic() + 30
            while len(server.requests) - server.requests_in_flight < prefetch.batches + prefetch.depth:
                assert time.monotonic() < deadline
                time.sleep(0.002)
        assert [batch[0][0] for batch, _ in taken] == list(range(4 * micro, 5 * micro))
    late = (micro - 8) * seconds
    if depth == 8:
        assert prefetch.depth == 8
        assert min(waits) >= late
    else:
        assert micro + 4 <= prefetch.depth <= LIMIT
        assert min(waits[2:]) < late / 2


def test_a_scorer_that_cannot_keep_up_finds_an_end(server: Any, client: Client) -> None:
    server.always = OneAtATime(0.001)
    read = 0

    def counted() -> Iterator[Any]:
        nonlocal read
        for batch in one_sequence_each():
            read += 1
            yield batch

    with client.prefetch(counted(), sequences=list) as prefetch:
        depths = []
        for number, (batch, scores) in enumerate(islice(prefetch, 200)):
            assert batch == [[number, 1]]
            assert scores[0].token_ids.tolist() == batch[0]
            assert read - number <= LIMIT + 1  # and one that is being handed out
            depths.append(prefetch.depth)
    assert depths[0] == START
    assert depths == sorted(depths)
    assert depths[-1] == LIMIT


def test_a_scorer_that_is_fast_needs_no_more_than_eight(client: Client) -> None:
    with client.prefetch(one_sequence_each(), sequences=list) as prefetch:
        for _ in islice(prefetch, 30):
            time.sleep(0.02)
        assert prefetch.depth == START
