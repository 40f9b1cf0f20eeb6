"""What the server and a team may hold, and when to come back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority.errors import Overloaded, Unavailable
from tokenpriority_service.scheduling.admission import Admission
from tokenpriority_service.scheduling.drain import RETRY_SECONDS
from tokenpriority_service.teams.caller import ANYONE


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_full_server_says_when_the_excess_will_have_left() -> None:
    clock = Clock()
    admission = Admission(1000, clock)
    with pytest.raises(Unavailable) as unmeasured:
        admission.admit(ANYONE, 1.0, 1001)
    assert unmeasured.value.retry_after == RETRY_SECONDS[0]
    admission.admit(ANYONE, 1.0, 400)
    admission.admit(ANYONE, 1.0, 600)
    clock.now = 4.0
    admission.finish(ANYONE, 400)
    assert admission.tokens_per_second == pytest.approx(100)
    with pytest.raises(Unavailable, match=r"600 tokens queued .* at most 1000 .* 700 more") as full:
        admission.admit(ANYONE, 1.0, 700)
    assert full.value.retry_after == math.ceil((600 + 700 - 1000) / 100)
    clock.now = 100.0
    admission.drop(ANYONE, 600)
    assert admission.queued_tokens == 0
    assert admission.tokens_per_second == pytest.approx(100), "given up work says nothing of speed"
    # Idle time is not counted as work.
    clock.now = 1000.0
    admission.admit(ANYONE, 1.0, 1000)
    clock.now = 1005.0
    admission.finish(ANYONE, 1000)
    assert admission.tokens_per_second == pytest.approx((2**-0.5 * 400 + 1000) / (2**-0.5 * 4 + 5)), (
        "5 of 10 s count 2**-0.5"
    )


def test_a_team_over_its_share_says_when_its_own_work_will_have_left() -> None:
    clock = Clock()
    admission = Admission(1000, clock)
    admission.admit("fast", 1.0, 200)
    admission.admit("slow", 1.0, 200)
    clock.now = 1.0
    admission.finish("fast", 100)
    clock.now = 10.0
    admission.finish("slow", 100)
    # 800 free, 100 held by each: 701 more are 1 over the weight's share, and each token that leaves counts twice.
    admission.admit("slow", 1.0, 400)
    with pytest.raises(
        Overloaded, match=r"team slow has 500 .* 200 more; .* weight of 1 .* at most 400 while 400"
    ) as no:
        admission.admit("slow", 1.0, 200)
    assert no.value.retry_after == (500 + 200 - 400) / 2 / 10, "at its own speed of 10 tokens a second"
    admission.admit("fast", 1.0, 100)
    with pytest.raises(Overloaded) as fast:
        admission.admit("fast", 1.0, 290)
    assert fast.value.retry_after == math.ceil((200 + 290 - 300) / 2 / 100)


def test_a_team_that_holds_nothing_gets_in_wherever_there_is_room() -> None:
    admission = Admission(1000)
    admission.admit("a", 1.0, 900)
    with pytest.raises(Overloaded):
        admission.admit("a", 1.0, 1)
    admission.admit("b", 0.01, 100)
    with pytest.raises(Unavailable):
        admission.admit("c", 100.0, 1)
    admission.admit("c", 1.0, 0)
    assert (admission.held("a"), admission.held("b"), admission.held("c")) == (900, 100, 0)
    assert admission.queued_tokens == 1000


def test_callers_without_a_key_have_the_server_to_themselves() -> None:
    admission = Admission(1000)
    for _ in range(10):
        admission.admit(ANYONE, 1.0, 100)
    assert admission.queued_tokens == 1000


teams = st.sampled_from(["a", "b", "c", ANYONE])
calls = st.tuples(st.sampled_from(["admit", "finish", "drop"]), teams, st.integers(0, 400))


@given(st.lists(calls, max_size=80))
def test_the_bounds_hold_whatever_happens(operations: list[tuple[str, str, int]]) -> None:
    clock = Clock()
    admission = Admission(1000, clock)
    truth: dict[str, list[int]] = {"a": [], "b": [], "c": [], ANYONE: []}
    weights = {"a": 1.0, "b": 0.5, "c": 3.0, ANYONE: 1.0}
    for operation, team, size in operations:
        clock.now += 0.1
        held = sum(truth[team])
        total = sum(map(sum, truth.values()))
        if operation == "admit":
            fits = total + size <= 1000
            within = team == ANYONE or not held or not size or held + size <= weights[team] * (1000 - total)
            if fits and within:
                admission.admit(team, weights[team], size)
                truth[team] += [size] if size else []
            else:
                with pytest.raises(Overloaded if fits else Unavailable) as refusal:
                    admission.admit(team, weights[team], size)
                assert refusal.value.retry_after is not None
                assert RETRY_SECONDS[0] <= refusal.value.retry_after <= RETRY_SECONDS[1]
        elif truth[team]:
            getattr(admission, operation)(team, truth[team].pop())
        assert admission.queued_tokens == sum(map(sum, truth.values()))
        assert {each: admission.held(each) for each in truth} == {each: sum(held) for each, held in truth.items()}
        assert set(admission._teams) == {each for each, held in truth.items() if held}, "memory of the absent"


@pytest.mark.parametrize("together", [1, 8, 64, 256])
def test_the_wait_is_right_however_many_works_one_call_holds(together: int) -> None:
    """A server of 1,000 tokens a second, whose calls end with all their works at once."""
    now = 0.0
    admission = Admission(100_000, clock=lambda: now)
    admission.admit("a", 1.0, 100_000)
    for _ in range(20):
        now += 3.0
        for _ in range(together):
            admission.finish("a", 3_000 // together)
    with pytest.raises(Unavailable) as full:
        admission.admit("b", 1.0, admission.max_queued_tokens - admission.queued_tokens + 30_000)
    assert full.value.retry_after == pytest.approx(30, abs=2)


def test_what_needs_no_engine_is_never_refused() -> None:
    admission = Admission(1000)
    admission.admit("a", 1.0, 450)
    admission.admit("b", 1.0, 300)
    for team in ("a", "b", "c"):
        admission.admit(team, 1.0, 0)
    admission.admit("c", 1.0, 250)
    admission.admit("a", 1.0, 0)
