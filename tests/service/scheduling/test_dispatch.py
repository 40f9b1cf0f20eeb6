"""What a dispatcher makes of engines of a stated speed, in virtual time: they are kept busy, and nobody interactive
waits long behind bulk work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from dispatching import BULK, INTERACTIVE, Desk
from tokenpriority.errors import EngineFault, InternalError, Unavailable
from tokenpriority_service.engines.engine import Job, Rows
from tokenpriority_service.scheduling.fair_queue import Flow
from tokenpriority_service.scheduling.window import BATCHING, FIRST_SLICE_TOKENS, SERIAL, SLICE_TOKENS
from virtual import Distant, Serial, Simulated, Stepped, run

ENGINES: dict[str, Callable[[], Simulated]] = {
    "serial": lambda: Serial(20_000.0),
    "fast": lambda: Serial(150_000.0),
    "steps": lambda: Stepped(50_000.0),
    "small steps": lambda: Stepped(50_000.0, budget=1024),
}
PIECES = {"serial": SERIAL.slice_seconds, "fast": SERIAL.slice_seconds, "steps": BATCHING.slice_seconds}
PIECES |= {"small steps": 1024 / 50_000}
"""Seconds of work an engine does not interrupt."""


@pytest.mark.parametrize("name", ENGINES)
def test_bulk_alone_keeps_an_engine_busy(name: str) -> None:
    async def main() -> None:
        engine = ENGINES[name]()
        desk = Desk(engine)
        desk.saturate([50, 200, 120, 90] * 32)
        await asyncio.sleep(1)
        busy = engine.busy
        await asyncio.sleep(2)
        assert engine.busy - busy > 0.97 * 2
        await desk.dispatcher.close()

    run(main())


@pytest.mark.parametrize("name", ENGINES)
def test_interactive_work_waits_for_a_slice_and_a_lead_and_bulk_keeps_what_is_left(name: str) -> None:
    """A request behind bulk work waits for the call in the engine, and one more if that was just begun; an engine that
    batches begins with it at its next step.
    """

    async def main() -> None:
        engine = ENGINES[name]()
        desk = Desk(engine)
        lengths = [100] * 4
        await desk.request([300] * 40, INTERACTIVE)  # so that the speed is known
        alone = await desk.request(lengths, INTERACTIVE)
        desk.saturate([50, 200, 120, 90] * 32)
        await asyncio.sleep(1)
        done = engine.tokens
        await asyncio.sleep(2)
        full = (engine.tokens - done) / 2
        done, began, waits = engine.tokens, desk.loop.time(), []
        for n in range(25):
            await asyncio.sleep(0.1 + 0.0137 * (n % 7))
            waits.append(await desk.request(lengths, INTERACTIVE) - alone)
        # A bulk call may hold half a sequence too much, and shares a step or batch with the request.
        one = (300 if name == "small steps" else 200) / engine.tokens_per_second + engine.overhead + engine.turnaround
        one += PIECES[name]
        assert max(waits) < 2 * one + SERIAL.lead_seconds
        assert np.mean(waits) < 1.5 * one
        assert (engine.tokens - done) / (desk.loop.time() - began) > 0.95 * full, "nothing is lost by it"
        await desk.dispatcher.close()

    run(main())


def test_interactive_work_that_saturates_leaves_bulk_a_fifth() -> None:
    async def main() -> None:
        engine = Serial(20_000.0)
        desk = Desk(engine)
        desk.saturate([100] * 32)
        desk.saturate([100] * 32, INTERACTIVE)
        await asyncio.sleep(1)
        begun = {name: sum(c == name for _, c, _ in desk.watch.waits) for name in ("bulk", "interactive")}
        await asyncio.sleep(10)
        now = {name: sum(c == name for _, c, _ in desk.watch.waits) - n for name, n in begun.items()}
        assert now["bulk"] / sum(now.values()) == pytest.approx(0.2, abs=0.01)
        await desk.dispatcher.close()

    run(main())


def test_an_engine_that_is_far_away_is_given_much_at_once() -> None:
    """Each call takes 0.2 s whatever it holds: less work would not make it faster, only poorer."""

    async def main() -> None:
        engine = Distant(5e6)
        desk = Desk(engine)
        desk.saturate([2000] * 64, clients=4)
        await asyncio.sleep(8)
        assert np.mean(engine.calls[-10:]) > SLICE_TOKENS / 2
        await desk.dispatcher.close()

    run(main())


def after(prepare: Callable[[Desk, Simulated], Any]) -> list[int]:
    """Tokens of the calls of a large bulk request after something else happened."""

    async def main() -> list[int]:
        engine = Serial(20_000.0)
        desk = Desk(engine)
        await prepare(desk, engine)
        engine.calls.clear()
        await desk.request([50] * 400, BULK)
        await desk.dispatcher.close()
        return engine.calls

    return run(main())


async def nothing(desk: Desk, engine: Simulated) -> None:
    pass


async def bulk(desk: Desk, engine: Simulated) -> None:
    await desk.request([50] * 400, BULK)


async def tiny(desk: Desk, engine: Simulated) -> None:
    await bulk(desk, engine)
    for _ in range(200):
        await desk.request([2], INTERACTIVE)


async def idle(desk: Desk, engine: Simulated) -> None:
    await bulk(desk, engine)
    await asyncio.sleep(10_000)


async def faults(desk: Desk, engine: Any) -> None:
    await bulk(desk, engine)
    score = engine.score

    async def fail(jobs: list[Job]) -> list[Rows | Exception]:
        return [EngineFault("no") for _ in jobs]

    engine.score = fail
    for _ in range(200):
        await asyncio.wait({desk.send(500, BULK).done})
    engine.score = score


@pytest.mark.parametrize("prepare", [bulk, tiny, idle, faults])
def test_slices_follow_the_speed_and_not_idle_time_tiny_calls_or_errors(prepare: Any) -> None:
    calls = after(prepare)
    steady = calls[3:-1]
    assert min(steady) >= 0.6 * 20_000 * SERIAL.slice_seconds
    assert max(steady) <= 1.5 * 20_000 * SERIAL.slice_seconds


def test_an_unknown_engine_is_tried_with_little() -> None:
    calls = after(nothing)
    assert max(calls) == calls[0] == FIRST_SLICE_TOKENS // 50 * 50


def test_bulk_work_an_interactive_request_joins_goes_with_that_request() -> None:
    async def main() -> None:
        desk = Desk(Serial(20_000.0))
        works = [desk.send(1000, BULK) for _ in range(20)]
        other = Flow("other", "bulk", 1.0)
        desk.dispatcher.join(works[-1], other)
        assert desk.dispatcher.queued == {("many", "bulk"): 20_000}
        desk.dispatcher.join(works[-1], INTERACTIVE)
        assert desk.dispatcher.queued == {("many", "bulk"): 19_000, ("few", "interactive"): 1000}
        assert works[-1].flow is BULK, "it stays whose it was"
        await asyncio.wait({works[-1].done})
        assert not works[5].done.done()
        await asyncio.wait({work.done for work in works})
        assert [c for _, c, _ in desk.watch.waits].count("interactive") == 1
        desk.dispatcher.join(works[0], INTERACTIVE)  # done already: nothing to move
        assert desk.admission.queued_tokens == 0
        await desk.dispatcher.close()

    run(main())


def test_who_leaves_before_the_engine_began_gets_the_tokens_back() -> None:
    async def main() -> None:
        engine = Serial(20_000.0)
        desk = Desk(engine)
        works = [desk.send(1000, BULK) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        begun = [work for work in works if work.started is not None]
        assert 0 < len(begun) < 10
        shared = works[-1]
        desk.dispatcher.join(shared, INTERACTIVE)
        assert desk.dispatcher.leave(shared) is False, "somebody still waits"
        assert desk.dispatcher.leave(shared) is True
        assert isinstance(shared.done.result(), Unavailable)
        assert desk.dispatcher.find(shared.wanted) is None
        assert desk.admission.held("many") == 9000
        assert desk.dispatcher.leave(begun[0]) is False, "it has begun"
        await asyncio.wait({work.done for work in works})
        assert desk.dispatcher.leave(works[-2]) is False, "it is done"
        assert desk.admission.held("many") == desk.admission.queued_tokens == 0
        await desk.dispatcher.close()

    run(main())


def test_the_watch_hears_of_every_sequence_and_of_all_the_time() -> None:
    async def main() -> None:
        engine = Serial(20_000.0, turnaround=0.0)
        desk = Desk(engine)
        began = desk.loop.time()
        await desk.request([100] * 100, BULK)
        seconds = desk.loop.time() - began
        assert len(desk.watch.waits) == sum(n for _, _, n, _ in desk.watch.calls) == 100
        assert {model for model, *_ in [*desk.watch.waits, *desk.watch.calls]} == {"reference"}
        assert sum(tokens for _, tokens, _, _ in desk.watch.calls) == 10_000
        assert sum(each for *_, each in desk.watch.calls) == pytest.approx(engine.busy) == pytest.approx(seconds)
        waits = [wait for _, _, wait in desk.watch.waits]
        assert waits == sorted(waits)
        assert waits[0] == 0
        await desk.dispatcher.close()

    run(main())


def test_a_queue_that_fails_tells_everyone_and_goes_on() -> None:
    async def main() -> None:
        class Broken(Serial):
            def score(self, jobs: Sequence[Job]) -> Any:
                if not self.calls:
                    self.calls.append(0)
                    raise RuntimeError("before there was anything to wait for")
                return super().score(jobs)

        desk = Desk(Broken(20_000.0))
        works = [desk.send(FIRST_SLICE_TOKENS, BULK) for _ in range(3)]  # one call's worth and more
        for work in works:
            assert isinstance(await work.done, InternalError)
        assert not desk.dispatcher.queued
        await desk.request([100], BULK)
        assert desk.admission.queued_tokens == 0
        await desk.dispatcher.close()

    run(main())


def test_closing_tells_everyone() -> None:
    async def main() -> None:
        desk = Desk(Serial(20_000.0))
        works = [desk.send(1000, BULK) for _ in range(10)]
        await asyncio.sleep(0.01)
        await desk.dispatcher.close()
        assert all(isinstance(work.done.result(), Unavailable) for work in works)
        assert desk.admission.queued_tokens == 0
        assert desk.dispatcher.queued == {}

    run(main())
