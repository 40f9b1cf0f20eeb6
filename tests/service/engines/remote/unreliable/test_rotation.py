"""Several replicas: who is asked, who is kept out, who comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tokenpriority.errors import Unavailable
from tokenpriority_service.engines.remote import RemoteEngine

Open = Callable[..., RemoteEngine]


def sound(results: list[Any]) -> bool:
    return all(not isinstance(rows, Exception) and bool(np.isfinite(rows[0, 1:]).all()) for rows in results)


def other_weights(kit: Any) -> Callable[[Any], Any]:
    """A front that answers as another model under the same name would."""

    def answer(exchange: Any) -> Any:
        reply = exchange.forward()
        if "prompt_logprobs" not in exchange.sent:
            return reply
        body = reply.json()
        for position in body["choices"][0]["prompt_logprobs"][1:]:
            for entry in position.values():
                entry["logprob"] *= 0.9
        return kit.reply(body)

    return answer


def other_version(kit: Any) -> Callable[[Any], Any]:
    return lambda exchange: kit.reply({"version": "9.9"}) if exchange.path == "/version" else exchange.forward()


def test_requests_in_flight_are_bounded_per_replica(
    kit: Any, generating: Any, open_front: Any, open_engine: Open
) -> None:
    """All three places of both are used all the time, and never a fourth."""
    fronts = [open_front(generating), open_front(generating)]
    engine = open_engine(*fronts, max_concurrent=3)
    six = threading.Barrier(6, timeout=60)

    def together(exchange: Any) -> Any:
        if exchange.prompt is not None:
            six.wait()
        return exchange.forward()

    for front in fronts:
        front.behave = together

    async def two_calls() -> list[Any]:
        calls = await asyncio.gather(*(engine.score(kit.jobs(*[20] * 15, seed=seed)) for seed in (1, 2)))
        return [result for call in calls for result in call]

    assert sound(asyncio.run(two_calls()))
    assert [front.peak for front in fronts] == [3, 3]
    assert [len(front.asked) for front in fronts] == [15, 15]


def test_the_least_loaded_replica_is_asked(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    """By tokens in flight, not by requests."""
    first, second = open_front(generating), open_front(generating)
    engine = open_engine(first, second)
    first.behave = lambda e: e.hang() if e.prompt is not None and len(e.prompt) == 100 else e.forward()

    async def beside() -> list[Any]:
        large = asyncio.create_task(engine.score(kit.jobs(100)))
        await asyncio.to_thread(kit.until, lambda: first.in_flight)
        small = await engine.score(kit.jobs(*[30] * 3)) + await engine.score(kit.jobs(*[5] * 4))
        large.cancel()
        return small

    assert sound(asyncio.run(beside()))
    assert (len(first.asked), len(second.asked)) == (1, 7)


@pytest.mark.parametrize(
    ("impostor", "complaint"),
    [
        (other_weights, "has other weights than .* had at first: the log-probabilities of the probe differ"),
        (other_version, "is not what .* served at first: version '9.9' instead of"),
    ],
)
def test_a_replica_that_disagrees_is_kept_out(
    kit: Any, generating: Any, open_front: Any, open_engine: Open, impostor: Any, complaint: str
) -> None:
    """At load, and named when it is the only one left."""
    honest, other = open_front(generating), open_front(generating)
    other.behave = impostor(kit)
    engine = open_engine(honest, other)
    assert sound(kit.score(engine, kit.jobs(*[5] * 20)))
    assert not other.asked
    honest.behave = lambda exchange: None
    kit.until(lambda: engine.fault is not None)
    (refused,) = kit.score(engine, kit.jobs(5))
    assert isinstance(refused, Unavailable)
    with pytest.raises(Unavailable, match=complaint):
        raise refused
    assert not other.asked


@pytest.mark.parametrize("impostor", [other_weights, other_version])
def test_a_replica_that_comes_back_as_another_stays_out(
    kit: Any, generating: Any, open_front: Any, open_engine: Open, impostor: Any
) -> None:
    front = open_front(generating)
    engine = open_engine(front)
    assert sound(kit.score(engine, kit.jobs(5)))
    front.behave = lambda exchange: None
    kit.until(lambda: engine.fault is not None)
    front.behave = impostor(kit)
    kit.until(lambda: "at first" in (engine.fault or ""))
    assert isinstance(kit.score(engine, kit.jobs(5))[0], Unavailable)
    front.behave = lambda exchange: exchange.forward()
    kit.until(lambda: engine.fault is None)
    assert sound(kit.score(engine, kit.jobs(5)))


def test_a_replica_whose_answers_turn_unsound_is_examined(
    kit: Any, generating: Any, open_front: Any, open_engine: Open
) -> None:
    """Its health is good all the while."""
    front = open_front(generating)
    engine = open_engine(front)
    front.behave = lambda e: kit.reply({"choices": []}) if e.path == "/v1/completions" else e.forward()
    kit.score(engine, kit.jobs(5))
    kit.until(lambda: engine.fault is not None)
    assert f"{front.url}: " in (engine.fault or "")


def test_one_replica_is_enough_to_load(kit: Any, free_port: int, generating: Any, open_engine: Open) -> None:
    engine = open_engine(f"http://127.0.0.1:{free_port}", generating)
    assert engine.fault is None
    assert sound(kit.score(engine, kit.jobs(5, 6, 7)))
