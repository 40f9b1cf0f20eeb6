"""How much an engine is given at once: it is kept busy, in order, and never holds more than its window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tokenpriority import wire
from tokenpriority_service.configuration.settings import ServerSettings, Settings
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.scheduling.window import FIRST_SLICE_TOKENS, SLICE_TOKENS, WINDOW_TOKENS


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def test_queued_work_of_a_client_that_hangs_up_never_starts(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None], hang_up: Callable[..., None]
) -> None:
    with serve({"reference": probe}) as server:
        probe.release.clear()
        window = pool.submit(server.score, *({"token_ids": [n] * (FIRST_SLICE_TOKENS // 2)} for n in range(4)))
        wait_until(lambda: len(probe.jobs) == 4, "as many jobs in the engine as it takes")
        admission = server.service.admission
        hang_up(
            server,
            {"sequences": [{"token_ids": [4, 5]}]},
            lambda: wait_until(lambda: admission.queued_tokens == 2 * FIRST_SLICE_TOKENS + 2, "the queued job"),
        )
        wait_until(lambda: admission.queued_tokens == 2 * FIRST_SLICE_TOKENS, "the dropped job")
        probe.release.set()
        assert len(window.result()) == 4
        assert len(probe.jobs) == 4
        assert admission.queued_tokens == 0


def test_a_large_queue_is_worked_off_in_order_and_in_slices(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None]
) -> None:
    with serve({"reference": probe}) as server:
        probe.release.clear()
        sequences = [{"token_ids": [n] * 600} for n in range(12)]
        first = pool.submit(server.score, *sequences[:6])
        wait_until(lambda: len(probe.jobs) == 6, "two calls in the engine")
        second = pool.submit(server.score, *sequences[6:])
        wait_until(lambda: server.service.admission.queued_tokens == 7_200, "the queue")
        assert probe.calls == [1_800, 1_800], "no room for a seventh"
        probe.release.set()
        assert [r["token_ids"][0] for r in first.result() + second.result()] == list(range(12))
        assert [int(job.token_ids[0]) for job in probe.jobs] == list(range(12))
        assert probe.most_tokens <= WINDOW_TOKENS


def test_work_is_handed_over_while_the_engine_is_busy(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None]
) -> None:
    with serve({"reference": probe}) as server:
        probe.release.clear()
        first = pool.submit(server.score, {"token_ids": [1, 2, 3]})
        wait_until(lambda: probe.calls == [3], "the first call")
        second = pool.submit(server.score, {"token_ids": [4, 5]})
        wait_until(lambda: probe.calls == [3, 2], "the second call beside it")
        probe.release.set()
        assert [len(each.result()) for each in (first, second)] == [1, 1]


def test_a_sequence_longer_than_the_window_is_scored_alone(
    serve: Any, make_probe: Callable[..., Any], pool: ThreadPoolExecutor
) -> None:
    probe = make_probe(FakeEngine(max_model_len=2 * WINDOW_TOKENS))
    limits = ServerSettings(max_request_tokens=2 * WINDOW_TOKENS)
    with serve({"reference": probe}, Settings(server=limits)) as server:
        lengths = (10, WINDOW_TOKENS + 1, SLICE_TOKENS + 1, 5)
        ids = [np.full(length, n, "<u4").tobytes() for n, length in enumerate(lengths)]
        answer = server.post({"sequences": [{"token_ids": each} for each in ids]}, media=wire.MSGPACK)
        assert answer.status_code == 200
        assert [len(job.token_ids) for job in probe.jobs] == list(lengths)
        assert probe.most_tokens == WINDOW_TOKENS + 1


def test_a_cancelled_call_leaves_its_room_to_others(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None], hang_up: Callable[..., None]
) -> None:
    with serve({"reference": probe}) as server:
        probe.release.clear()
        queued: list[Any] = []

        def queue_another() -> None:
            wait_until(lambda: len(probe.jobs) == 4, "a full engine")
            queued.append(pool.submit(server.score, {"token_ids": [7, 8, 9]}))
            wait_until(lambda: server.service.admission.queued_tokens == 2 * FIRST_SLICE_TOKENS + 3, "the queued job")

        hang_up(
            server, {"sequences": [{"token_ids": [n] * (FIRST_SLICE_TOKENS // 2)} for n in range(4)]}, queue_another
        )
        wait_until(lambda: probe.cancelled == 2, "both calls cancelled")
        wait_until(lambda: probe.calls == [3], "the other's call")
        probe.release.set()
        assert queued[0].result()[0]["priorities"] == [0, 1, 1]
        assert server.service.admission.queued_tokens == 0
