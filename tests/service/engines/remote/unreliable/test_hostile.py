"""A replica that answers wrongly, late, or not at all: nothing unsound is returned, and nothing hangs."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tokenpriority.errors import EngineFault, InvalidSequence, Unavailable
from tokenpriority_service.engines.remote import RemoteEngine, watch

Open = Callable[..., RemoteEngine]
Change = Callable[[list[Any]], Any]


def entry(positions: list[Any], index: int) -> dict[str, Any]:
    (only,) = positions[index].values()
    return dict(only)


def with_entry(positions: list[Any], index: int, **changes: Any) -> list[Any]:
    token = next(iter(positions[index]))
    return [*positions[:index], {token: entry(positions, index) | changes}, *positions[index + 1 :]]


UNSOUND: dict[str, tuple[Change, str]] = {
    "other ids": (lambda p: [*p[:3], {"299": entry(p, 3)}, *p[4:]], "logprob of token 299 at position 3, where token"),
    "shifted ids": (lambda p: [p[0], *p[2:], p[1]], "at position 1, where token"),
    "left out": (lambda p: [*p[:5], None, *p[6:]], "left out the logprob at position 5"),
    "short": (lambda p: p[:-1], r"logprobs of \[9\] tokens for one prompt of 10"),
    "long": (lambda p: [*p, p[-1]], r"logprobs of \[11\] tokens for one prompt of 10"),
    "first given": (lambda p: [p[1], *p[1:]], "logprob of the first token"),
    "empty": (lambda p: [*p[:4], {}, *p[5:]], "no token at position 4"),
    "above 0": (lambda p: with_entry(p, 2, logprob=0.5), "logprob = 0.5 at position 2"),
    "minus infinity": (lambda p: with_entry(p, 2, logprob=-9999.0), "logprob = -inf at position 2"),
    "no number": (lambda p: with_entry(p, 2, logprob=None), "not one of /v1/completions"),
    "rank 0": (lambda p: with_entry(p, 2, rank=0), "not one of /v1/completions"),
    "no rank": (lambda p: with_entry(p, 2, rank=None), "not one of /v1/completions"),
    "none at all": (lambda p: None, "not one of /v1/completions"),
}


def only_for(length: int, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A front that changes the answers to prompts of this length, and is honest otherwise."""
    return lambda e: change(e) if e.prompt is not None and len(e.prompt) == length else e.forward()


def test_unsound_answers_are_that_items_fault(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    front = open_front(generating)
    engine = open_engine(front)
    bad, good = kit.jobs(10)[0], kit.jobs(9)[0]
    (expected,) = kit.score(engine, [good])
    for name, (change, complaint) in UNSOUND.items():

        def spoil(exchange: Any, change: Change = change) -> Any:
            body = exchange.forward().json()
            choice = body["choices"][0]
            choice["prompt_logprobs"] = change(copy.deepcopy(choice["prompt_logprobs"]))
            return kit.reply(body)

        front.behave = only_for(10, spoil)
        fault, rows = kit.score(engine, [bad, good])
        assert isinstance(fault, EngineFault), name
        with pytest.raises(EngineFault, match=complaint):
            raise fault
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)
    assert len(front.asked) == 1 + 2 * len(UNSOUND), "an unsound answer is not asked for again"
    assert engine.fault is None


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b'{"choices": []}', b'{"choices": [{}, {}]}'])
def test_bodies_that_are_no_answer(kit: Any, generating: Any, open_front: Any, open_engine: Open, body: bytes) -> None:
    front = open_front(generating)
    engine = open_engine(front)
    answer = kit.reply(None)
    answer.body = body
    front.behave = only_for(10, lambda exchange: answer)
    (fault,) = kit.score(engine, kit.jobs(10))
    assert isinstance(fault, EngineFault)


def test_an_endless_answer_is_cut(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    front = open_front(generating)
    engine = open_engine(front, retries=0)
    answer = kit.reply(None)
    answer.body = b" " * (1 << 21)
    front.behave = only_for(10, lambda exchange: answer)
    (fault,) = kit.score(engine, kit.jobs(10))
    assert isinstance(fault, Unavailable)
    assert "an answer of more than" in fault.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, EngineFault), (502, EngineFault), (503, Unavailable), (429, Unavailable), (None, Unavailable)],
)
def test_passing_failures_are_asked_again(
    kit: Any, generating: Any, open_front: Any, open_engine: Open, status: int | None, kind: type[Exception]
) -> None:
    """500, 503, 429 and a broken connection: as often as `retries` says, and no more."""
    front = open_front(generating)
    engine = open_engine(front, retries=2)
    refusal = None if status is None else kit.reply({"error": {"message": "not now"}}, status)
    front.behave = only_for(10, lambda exchange: refusal)
    (fault,) = kit.score(engine, kit.jobs(10))
    assert isinstance(fault, kind)
    assert len(front.asked) == 3
    left = [refusal, refusal]
    front.behave = only_for(10, lambda exchange: left.pop() if left else exchange.forward())
    (rows,) = kit.score(engine, kit.jobs(10))
    assert np.isfinite(rows[0, 1:]).all()
    assert len(front.asked) == 6


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidSequence), (418, EngineFault), (307, EngineFault)])
def test_other_refusals_are_final(
    kit: Any, generating: Any, open_front: Any, open_engine: Open, status: int, kind: type[Exception]
) -> None:
    front = open_front(generating)
    engine = open_engine(front)
    front.behave = only_for(10, lambda exchange: kit.reply({"error": {"message": "never"}}, status))
    (fault,) = kit.score(engine, kit.jobs(10))
    assert isinstance(fault, kind)
    assert "never" in str(fault)
    assert len(front.asked) == 1


def test_retry_after_is_honoured(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    """The replica that is held is left alone, the other does the work."""
    busy, other = open_front(generating), open_front(generating)
    engine = open_engine(busy, other, max_concurrent=1)
    busy.behave = only_for(10, lambda exchange: kit.reply({}, 429, {"retry-after": "60"}))
    results = kit.score(engine, kit.jobs(*[10] * 12))
    assert all(np.isfinite(rows[0, 1:]).all() for rows in results)
    assert (len(busy.asked), len(other.asked)) == (1, 12)


def test_a_replica_that_accepts_and_never_answers(
    kit: Any, generating: Any, open_front: Any, open_engine: Open
) -> None:
    front = open_front(generating)
    engine = open_engine(front, timeout=1.0, retries=1)
    front.behave = only_for(10, lambda exchange: exchange.hang())
    (fault,) = kit.score(engine, kit.jobs(10))
    assert isinstance(fault, Unavailable)
    assert "no answer within 1 s" in fault.message


def test_what_hangs_is_given_up_when_health_fails(
    kit: Any, generating: Any, open_front: Any, open_engine: Open
) -> None:
    """Long before its timeout; and it comes back by itself."""
    front = open_front(generating)
    engine = open_engine(front, timeout=600.0)

    def sick(exchange: Any) -> Any:
        if exchange.prompt is not None:
            return exchange.hang()
        return kit.reply({}, 503) if front.in_flight or engine.fault else exchange.forward()

    front.behave = sick
    (fault,) = kit.score(engine, kit.jobs(10))
    assert isinstance(fault, Unavailable)
    assert f"no replica can be used: {front.url}: HTTP 503" in fault.message
    assert engine.fault == fault.message
    (at_once,) = kit.score(engine, kit.jobs(10))
    assert isinstance(at_once, Unavailable)
    assert len(front.asked) == 1
    front.behave = lambda exchange: exchange.forward()
    kit.until(lambda: engine.fault is None)
    (rows,) = kit.score(engine, kit.jobs(10))
    assert np.isfinite(rows[0, 1:]).all()


def test_cancelling_a_call_cancels_its_requests(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    front = open_front(generating)
    engine = open_engine(front, max_concurrent=4)
    front.behave = only_for(10, lambda exchange: exchange.hang())

    async def cancel() -> None:
        task = asyncio.create_task(engine.score(kit.jobs(*[10] * 20)))
        await asyncio.to_thread(kit.until, lambda: front.in_flight >= 4)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    kit.until(lambda: front.abandoned == 4)
    assert len(front.asked) == front.peak == 4
    front.behave = lambda exchange: exchange.forward()
    assert all(np.isfinite(rows[0, 1:]).all() for rows in kit.score(engine, kit.jobs(*[10] * 6)))


def test_closing_gives_up_what_is_in_flight(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    front = open_front(generating)
    engine = open_engine(front)
    front.behave = only_for(10, lambda exchange: exchange.hang())

    async def close() -> list[Any]:
        task = asyncio.create_task(engine.score(kit.jobs(10, 10)))
        await asyncio.to_thread(kit.until, lambda: front.in_flight >= 2)
        await engine.close()
        await engine.close()
        return [*await task, *await engine.score(kit.jobs(5))]

    for result in asyncio.run(close()):
        assert isinstance(result, Unavailable)
        assert "the engine is closed" in result.message
    assert engine.fault == "the engine is closed"
    kit.until(lambda: front.abandoned == 2)


def test_a_failed_examination_is_tried_until_it_passes(
    kit: Any, generating: Any, open_front: Any, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is still starting when the engine loads."""
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.05)
    front = open_front(generating)
    refusals = [kit.reply({}, 503)] * 3
    front.behave = lambda exchange: refusals.pop() if refusals else exchange.forward()
    engine = open_engine(front)
    assert engine.fault is None
    assert not refusals
