"""Shares of an engine in which urgent work overtakes what it was given before, under one name or several; in virtual
time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest

from dispatching import BULK, INTERACTIVE, Desk
from tokenpriority.errors import EngineFault
from tokenpriority_service.engines.engine import Job, Rows
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.scheduling.fair_queue import Flow
from tokenpriority_service.scheduling.window import BATCHING
from virtual import Stepped, run

SPEED = 50_000.0
SLICE = int(BATCHING.slice_seconds * SPEED)
STEP = 1024
RATE = STEP / (STEP / SPEED + Stepped.overhead)
"""Tokens a second, with what each step takes besides."""


def stepped() -> Stepped:
    return Stepped(SPEED, budget=STEP)


async def answered(desk: Desk, seconds: float = 15.0) -> dict[Flow, int]:
    """Tokens each flow has answered in so many seconds, once it has settled."""
    await asyncio.sleep(5)
    before = desk.answered.copy()
    await asyncio.sleep(seconds)
    return dict(desk.answered - before)


@pytest.mark.parametrize("lengths", [[150] * (SLICE // 150), [SLICE], [150] * 200, [30_000]])
def test_a_bulk_client_keeps_about_a_fifth_beside_interactive_work_that_saturates(lengths: list[int]) -> None:
    """It sends a request when it has the answer to the last: what the engine has of it is all there is of its class,
    and on its way to the engine it wants nothing.
    """

    async def main() -> None:
        desk = Desk(stepped())
        desk.saturate([100] * 32, INTERACTIVE)
        await asyncio.sleep(1)
        desk.saturate(lengths, BULK, clients=1)
        done = await answered(desk)
        assert 0.16 <= done[BULK] / sum(done.values()) <= 0.23
        assert sum(done.values()) > 0.96 * 15 * RATE, "nothing is lost by it"
        await desk.dispatcher.close()

    run(main())


def test_small_bulk_requests_wait_for_no_more_than_the_engine_has() -> None:
    async def main() -> None:
        desk = Desk(stepped())
        desk.saturate([100] * 32, INTERACTIVE)
        await asyncio.sleep(1)
        waits = [await asyncio.wait_for(desk.request([100], BULK), 10) for _ in range(20)]
        assert max(waits) < 2 * BATCHING.slice_seconds + 0.1
        await desk.dispatcher.close()

    run(main())


def test_bulk_work_the_engine_had_before_is_done_when_interactive_work_saturates() -> None:
    async def main() -> None:
        desk = Desk(stepped())
        await desk.request([150] * 400, BULK)  # so that the speed is known
        works = [desk.send(150, BULK) for _ in range(2 * SLICE // 150)]
        await asyncio.sleep(0.01)
        desk.saturate([100] * 32, INTERACTIVE)
        at_a_fifth = sum(work.tokens for work in works) / (RATE / 5)
        await asyncio.wait_for(asyncio.wait({work.done for work in works}), 1.3 * at_a_fifth)
        await desk.dispatcher.close()

    run(main())


def test_bulk_work_on_an_adapter_keeps_a_fifth_of_the_engine() -> None:
    async def main() -> None:
        engine = stepped()
        desk = Desk(engine, adapters={"warmed": engine})
        desk.saturate([100] * 32, INTERACTIVE)
        desk.saturate([150] * 50, BULK, model="warmed")
        done = await answered(desk)
        assert done[BULK] / sum(done.values()) == pytest.approx(0.2, abs=0.03)
        await desk.dispatcher.close()

    run(main())


def test_a_team_on_several_adapters_has_one_share() -> None:
    async def main() -> None:
        engine, names = stepped(), ("one", "two")
        desk = Desk(engine, adapters=dict.fromkeys(names, engine))
        spread = Flow("spread", "interactive", 1.0)
        for name in ("reference", *names):
            desk.saturate([100] * 32, spread, model=name)
        desk.saturate([100] * 32, INTERACTIVE)
        done = await answered(desk)
        assert done[spread] / sum(done.values()) == pytest.approx(0.5, abs=0.03)
        await desk.dispatcher.close()

    run(main())


def test_a_call_that_is_stuck_holds_nobody_up_where_nothing_overtakes() -> None:
    """A replica that hangs; the others answer."""

    class Replicas(Stepped):
        async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
            if len(jobs[0].token_ids) == 77:
                await asyncio.Event().wait()
            return await super().score(jobs)

    async def main() -> None:
        desk = Desk(Replicas(SPEED, info=replace(Stepped.info, urgent_first=False)))
        await desk.request([150] * 400, BULK)
        desk.send(77, BULK)
        await asyncio.sleep(30)
        assert await asyncio.wait_for(desk.request([100] * 4, INTERACTIVE), 10) < 0.1
        await desk.dispatcher.close()

    run(main())


def test_classes_take_turns_in_whole_calls() -> None:
    """Sequence by sequence the engine would be given crumbs of both."""

    async def main() -> None:
        engine = stepped()
        desk = Desk(engine)
        desk.saturate([100] * 32, INTERACTIVE)
        desk.saturate([150] * 50)
        await asyncio.sleep(5)
        engine.calls.clear()
        await asyncio.sleep(10)
        assert np.average(engine.calls, weights=engine.calls) > SLICE / 2
        await desk.dispatcher.close()

    run(main())


@pytest.mark.parametrize("short", [False, True])
def test_a_call_for_two_models_gives_each_its_own(short: bool) -> None:
    class Short(FakeEngine):
        async def score(self, jobs: Sequence[Job]) -> list[Any]:
            return (await super().score(jobs))[1:]

    async def main() -> None:
        engines = {"reference": FakeEngine(), "warmed": (Short if short else FakeEngine)(model="other")}
        desk = Desk(engines["reference"], adapters={"warmed": engines["warmed"]})
        sent = [(name, desk.send(n, BULK, name)) for n, name in zip(range(2, 40), cycle(engines), strict=False)]
        for model in engines:
            queued = sum(work.tokens for name, work in sent if name == model)
            assert desk.dispatchers[model].queued == {("many", "bulk"): queued}
        await asyncio.wait({work.done for _, work in sent})
        for name, work in sent:
            if short and name == "warmed":
                assert isinstance(work.done.result(), EngineFault), "not the answer to another one"
            else:
                [expected] = await engines[name].score([work.job])
                np.testing.assert_array_equal(work.done.result(), expected)
        assert sorted((model, tokens) for model, tokens, *_ in desk.watch.calls) == [
            (model, sum(work.tokens for name, work in sent if name == model)) for model in sorted(engines)
        ]
        await desk.dispatcher.close()

    run(main())
