"""Prefetch: order, place of errors, bounds and endings, over a real socket."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tokenpriority import Client, ContractBroken, SequenceErrors


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, retries=0) as connected:
        yield connected


def batches(count: int) -> list[list[list[int]]]:
    """Batch n: two sequences that begin with n."""
    return [[[n, 1], [n, 2, 3]] for n in range(count)]


def first(request: Any) -> bool:
    """Whether its first token is 0, as of batch 0."""
    return bool(request.sequences[0].token_ids[0] == 0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def prefetch_threads() -> int:
    return sum(thread.name == "tokenpriority-prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_batches_come_in_the_loaders_order_with_their_scores(server: Any, client: Client, depth: int) -> None:
    async def slower_first(server: Any, request: Any) -> Any:
        await asyncio.sleep(0.02 if len(server.requests) % 3 == 1 else 0)
        return await server.score(request)

    server.always = slower_first
    prefetch = client.prefetch(batches(20), sequences=lambda batch: batch, method="uniform", depth=depth)
    seen = list(prefetch)
    assert [batch for batch, _ in seen] == batches(20)
    for batch, scores in seen:
        assert [s.token_ids.tolist() for s in scores] == batch
    assert prefetch.batches == 20
    assert prefetch_threads() == 0
    assert list(prefetch) == []


def test_any_iterator_one_next_at_a_time(client: Client) -> None:
    iterator = iter(batches(3))
    prefetch = client.prefetch(iterator, sequences=lambda batch: batch, method="uniform")
    assert next(prefetch)[0] == batches(3)[0]
    assert next(prefetch)[0] == batches(3)[1]
    assert next(prefetch)[0] == batches(3)[2]
    with pytest.raises(StopIteration):
        next(prefetch)


def test_an_empty_loader_ends_at_once(client: Client) -> None:
    assert list(client.prefetch([], sequences=list, method="uniform")) == []


@pytest.mark.parametrize("depth", [1, 4])
def test_at_most_depth_batches_are_ahead(server: Any, client: Client, depth: int) -> None:
    read = 0

    def loader() -> Iterator[list[list[int]]]:
        nonlocal read
        for batch in batches(30):
            read += 1
            yield batch

    prefetch = client.prefetch(loader(), sequences=lambda batch: batch, method="uniform", depth=depth)
    assert (read, server.requests) == (0, []), "nothing begins before the first next"
    for taken in range(1, 6):
        next(prefetch)
        until(lambda: len(server.requests) == depth + taken)  # noqa: B023 -- awaited at once
        assert read == depth + taken
    prefetch.close()


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, "8", None])
def test_a_depth_that_is_none_is_refused(client: Client, depth: Any) -> None:
    said = f"^depth: must be 'auto' or a whole number of at least 1, got {depth!r}$"
    with pytest.raises(ValueError, match=said):
        client.prefetch([], sequences=list, method="uniform", depth=depth)
    with pytest.raises(ValueError, match=said):
        client.source(depth=depth)


@pytest.mark.parametrize("depth", [1, 8])
def test_a_loaders_error_is_raised_in_its_place(client: Client, depth: int) -> None:
    def loader() -> Iterator[list[list[int]]]:
        yield from batches(3)
        raise OSError("disk")

    prefetch = client.prefetch(loader(), sequences=lambda batch: batch, method="uniform", depth=depth)
    assert [next(prefetch)[0][0][0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk"):
        next(prefetch)
    assert list(prefetch) == []
    assert prefetch_threads() == 0


def test_an_error_of_sequences_is_raised_in_its_place(client: Client) -> None:
    def sequences(batch: Any) -> Any:
        if batch[0][0] == 2:
            raise KeyError("no such column")
        return batch

    prefetch = client.prefetch(batches(5), sequences=sequences, method="uniform")
    assert [next(prefetch)[0][0][0] for _ in range(2)] == [0, 1]
    with pytest.raises(KeyError, match="no such column"):
        next(prefetch)


def test_an_error_of_the_server_is_raised_in_its_place(server: Any, client: Client) -> None:
    async def third_is_broken(server: Any, request: Any) -> Any:
        ids = request.sequences[0].token_ids
        return await server.score(request, lambda answer: answer["results"].pop() if ids[0] == 2 else None)

    server.always = third_is_broken
    prefetch = client.prefetch(batches(5), sequences=lambda batch: batch, method="uniform")
    assert [next(prefetch)[0][0][0] for _ in range(2)] == [0, 1]
    with pytest.raises(ContractBroken, match="number of results"):
        next(prefetch)


def test_a_refused_sequence_stops_the_run(client: Client) -> None:
    prefetch = client.prefetch([[[1, 2], []]], sequences=lambda batch: batch, method="uniform")
    with pytest.raises(SequenceErrors) as caught:
        next(prefetch)
    assert list(caught.value.failures) == [1]
    assert caught.value.results[0].token_ids.tolist() == [1, 2]


def test_equal_sequences_of_a_batch_are_sent_once(server: Any, client: Client) -> None:
    [(_, scores)] = client.prefetch([[[1, 2], [1, 2], [3]]], sequences=lambda batch: batch, method="uniform")
    assert [s.token_ids.tolist() for s in scores] == [[1, 2], [1, 2], [3]]
    assert [len(request.sequences) for request in server.requests] == [2]


def test_wait_seconds_is_what_the_consumer_waited(server: Any, client: Client) -> None:
    server.seconds = 0.1
    prefetch = client.prefetch(batches(2), sequences=lambda batch: batch, method="uniform", depth=1)
    assert prefetch.wait_seconds == 0.0
    next(prefetch)
    once = prefetch.wait_seconds
    assert once > 0
    next(prefetch)
    # With depth 1 the second request begins only after the first batch was taken, so its 0.1 s are waited for.
    assert prefetch.wait_seconds - once >= 0.09
    prefetch.close()


def test_the_loader_may_use_the_client(client: Client) -> None:
    def loader() -> Iterator[Any]:
        for batch in batches(3):
            client.score(batch)
            yield batch

    assert len(list(client.prefetch(loader(), sequences=lambda batch: batch, method="uniform"))) == 3


def test_a_slow_loader_does_not_hold_up_answers(client: Client) -> None:
    """The first batch arrives while the loader is still making the second."""
    go_on = threading.Event()

    def loader() -> Iterator[Any]:
        yield batches(2)[0]
        assert go_on.wait(30)
        yield batches(2)[1]

    prefetch = client.prefetch(loader(), sequences=lambda batch: batch, method="uniform")
    assert next(prefetch)[0] == batches(2)[0]
    go_on.set()
    assert next(prefetch)[0] == batches(2)[1]
    prefetch.close()


def leave(prefetch: Any) -> None:
    with prefetch:
        next(prefetch)


def forget(prefetch: Any) -> None:
    next(prefetch)
    del prefetch
    gc.collect()


def break_off(prefetch: Any) -> None:
    for _ in prefetch:
        break
    prefetch.close()
    prefetch.close()


@pytest.mark.parametrize("end", [leave, forget, break_off])
def test_stopping_early_ends_the_thread_and_the_requests(
    server: Any, end: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    server.always = server.hanging_unless(first)
    with Client(server.url, retries=0) as client:
        end(client.prefetch(batches(50), sequences=lambda batch: batch, method="uniform", depth=4))
        until(lambda: prefetch_threads() == 0)
        until(lambda: server.requests_in_flight == 0)
        assert len(server.requests) <= 5
        server.always = None
        assert len(client.score([[1, 2]])) == 1, "the client itself goes on"
    gc.collect()
    assert caplog.records == []


def test_closing_the_client_ends_the_prefetch_with_an_error(server: Any) -> None:
    server.always = server.hanging_unless(first)
    client = Client(server.url)
    prefetch = client.prefetch(batches(50), sequences=lambda batch: batch, method="uniform")
    next(prefetch)
    client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        next(prefetch)
    assert list(prefetch) == []


def test_a_consumer_that_waits_is_told_when_another_thread_closes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenpriority.prefetch.JOIN_SECONDS", 0.1)  # the loader stands still until the end
    reading = threading.Event()
    go_on = threading.Event()

    def loader() -> Iterator[Any]:
        reading.set()
        go_on.wait(30)
        yield batches(1)[0]

    prefetch = client.prefetch(loader(), sequences=lambda batch: batch)
    left: list[Any] = []
    waiting = threading.Thread(target=lambda: left.append(list(prefetch)))
    waiting.start()
    assert reading.wait(30)
    closing = threading.Thread(target=prefetch.close)
    closing.start()
    waiting.join(30)
    assert left == [[]]
    go_on.set()
    closing.join()
    until(lambda: prefetch_threads() == 0)


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "next(results)", "del prefetch, client"])
def test_the_interpreter_ends_quietly(server: Any, end: str) -> None:
    """Threads, requests and a prefetch in the middle of things: nothing is printed and nothing hangs."""
    server.always = server.hanging_unless(first)
    program = f"""
        from tokenpriority import Client
        client = Client({server.url!r}, max_inflight_tokens=50)
        results = client.score_many([[n] * 10 for n in range(100)])
        prefetch = client.prefetch(([[n, 1]] for n in range(1000)), sequences=list, method="uniform", depth=4)
        next(prefetch)
        {end}
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
