"""What a charge takes, what it gives back, and what it says where there is too little."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postgres import Postgres
from tokenpriority.errors import Overloaded, TooLarge, Unavailable
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.tables import allowance, in_flight
from tokenpriority_service.database.upgrade import upgrade
from tokenpriority_service.teams.caller import Caller, Limits
from tokenpriority_service.teams.charge import Charge, Remaining
from tokenpriority_service.teams.in_flight import EXPIRY_SECONDS
from tokenpriority_service.teams.quota import Quota


def caller(team: str = "alpha", *, per_minute: int | None = None, at_once: int | None = None) -> Caller:
    return Caller(team, frozenset(("score",)), Limits(1.0, per_minute, at_once))


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """The statements a database is sent."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, text: str, *rest: Any) -> None:
        statements.append(text)

    sa.event.listen(database._engine, "before_cursor_execute", note)
    yield statements
    sa.event.remove(database._engine, "before_cursor_execute", note)


async def attempt(quota: Quota, who: Caller, tokens: int) -> tuple[Charge | None, float]:
    """A charge, or how long to wait for it."""
    try:
        return await quota.charge(who, tokens), 0.0
    except Overloaded as error:
        return None, error.retry_after or 0.0


async def until(quota: Quota, who: Caller, condition: Callable[[Remaining], bool]) -> None:
    """Wait for what a background task brings about."""
    for _ in range(3000):
        if condition(await quota.remaining(who)):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never came")


async def refused(charge: Awaitable[Any]) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        await charge
    assert caught.value.retry_after is not None
    return caught.value


def test_a_bucket_is_full_at_first_empties_and_refills(sqlite: Database, clock: Any) -> None:
    async def run() -> None:
        quota, alpha = Quota(sqlite, "one", clock), caller(per_minute=600)
        first = await quota.charge(alpha, 500)
        assert first.remaining is not None
        assert (first.remaining.tokens_remaining, first.remaining.reset_seconds) == (100, 50.0)
        error = await refused(quota.charge(alpha, 101))
        assert error.message == (
            "team alpha has 100 left of its 600 tokens per minute (tokens_per_minute); this request needs 101"
        )
        assert 0.1 < error.retry_after < 0.11  # type: ignore[operator]
        clock.now += 10
        assert (await quota.remaining(alpha)).tokens_remaining == 200
        await quota.charge(alpha, 200)
        assert (await quota.remaining(alpha)).tokens_remaining == 0
        clock.now += 1e6
        assert (await quota.remaining(alpha)).tokens_remaining == 600
        # Another team has a bucket of its own.
        assert (await quota.charge(caller("beta", per_minute=600), 600)).tokens == 600

    asyncio.run(run())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    capacity=st.integers(1, 10**9),
    steps=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 90), st.floats(0, 1.2)), min_size=1, max_size=12),
)
def test_any_history_agrees_with_a_bucket_kept_by_hand(
    sqlite: Database, clock: Any, capacity: int, steps: list[tuple[float, float, float]]
) -> None:
    async def run() -> None:
        quota, team = Quota(sqlite, "one", clock), caller(per_minute=capacity)
        sqlite.write_now(lambda connection: connection.execute(sa.delete(allowance)))
        left, total, began = float(capacity), 0, clock.now
        for share, pause, back in steps:
            clock.now += pause
            left = min(capacity, left + pause * capacity / 60)
            tokens = max(1, int(share * capacity))
            near = abs(left - tokens) < 1e-5 * capacity + 1e-3
            charge, wait = await attempt(quota, team, tokens)
            if charge is None:
                assert left < tokens or near
                # Waiting as told is enough, and there was no need to wait for less.
                exact = (tokens - left) * 60 / capacity
                assert exact - 1e-4 <= wait <= exact + 0.0025
                clock.now += wait
                left = min(capacity, left + wait * capacity / 60)
                charge = await quota.charge(team, tokens)
            else:
                assert left >= tokens or near
            refund = min(tokens, int(back * tokens))
            charge.refund(refund)
            charge.close()
            left = min(capacity, left - tokens + refund)
            total += tokens - refund
            there = (await quota.remaining(team)).tokens_remaining
            assert there is not None
            assert there >= 0
            assert there == pytest.approx(math.floor(left), abs=1 + 1e-5 * capacity)
        assert total <= capacity + (clock.now - began) * capacity / 60 + 1e-3
        await quota.close()

    asyncio.run(run())


def test_waiting_as_told_is_enough_on_a_real_clock(database: Database) -> None:
    async def run() -> None:
        quota, team = Quota(database, "one"), caller(per_minute=600)  # one in 100 ms
        waits = 0
        while waits < 4:
            there = (await quota.remaining(team)).tokens_remaining
            assert there is not None
            tokens = min(there + 3, 600)
            charge, wait = await attempt(quota, team, tokens)
            if charge is None:
                assert 0 < wait <= 0.3025
                await asyncio.sleep(wait)
                await quota.charge(team, tokens)
                waits += 1

    asyncio.run(run())


def test_what_never_fits_is_too_large_and_free(database: Database) -> None:
    async def run() -> None:
        quota = Quota(database, "one")
        for team, name in ((caller(per_minute=10), "tokens_per_minute"), (caller(at_once=10), "concurrent_tokens")):
            with counted(database) as statements:
                with pytest.raises(TooLarge, match=rf"needs 11 tokens, and team alpha may have at most 10 \({name}\)"):
                    await quota.charge(team, 11)
                assert not statements
            (await quota.charge(team, 10)).close()

    asyncio.run(run())


def test_without_limits_or_tokens_the_database_is_not_asked(database: Database) -> None:
    async def run() -> None:
        quota = Quota(database, "one")
        with counted(database) as statements:
            free = await quota.charge(caller(), 10**9)
            assert (await quota.remaining(caller())).in_flight_tokens == 10**9
            none = await quota.charge(caller("beta", per_minute=1, at_once=1), 0)
            for charge in (free, none):
                assert charge.remaining is None
                charge.refund(5)
                charge.close()
            assert (await quota.remaining(caller())).in_flight_tokens == 0
        assert not statements
        with counted(database) as statements:
            await quota.charge(caller("beta", per_minute=1, at_once=1), 1)
        assert statements

    asyncio.run(run())


def test_tokens_in_flight_are_bounded_over_replicas(connect: Callable[[], Database]) -> None:
    async def run() -> None:
        one, two = Quota(connect(), "one"), Quota(connect(), "two")
        team = caller(at_once=100)
        first, second = await one.charge(team, 60), await two.charge(team, 30)
        assert second.remaining is not None
        assert second.remaining.in_flight_tokens == 90
        for quota in (one, two):
            error = await refused(quota.charge(team, 11))
            assert error.message == (
                "team alpha has 90 tokens in flight of at most 100 (concurrent_tokens); this request needs 11"
            )
            assert error.retry_after == 1.0  # nothing was measured
            assert (await quota.remaining(team)).in_flight_tokens == 90
        # Given back, it counts at once where it was charged; elsewhere once it is written.
        first.refund(20)
        assert (await one.charge(team, 30)).tokens == 30
        await refused(two.charge(team, 1))
        first.close()
        first.close()
        await one._write(all_held=False)
        assert (await two.remaining(team)).in_flight_tokens == 60
        (await two.charge(team, 40)).close()
        second.close()
        await two.close()
        assert (await one.remaining(team)).in_flight_tokens == 30
        await one.close()

    database = connect()
    asyncio.run(run())
    assert not database.read_now(lambda connection: connection.execute(sa.select(in_flight)).all())


def test_the_wait_for_tokens_in_flight_is_measured(sqlite: Database, clock: Any) -> None:
    async def run() -> None:
        quota, team = Quota(sqlite, "one", clock), caller(at_once=1000)
        for _ in range(5):
            charge = await quota.charge(team, 100)
            clock.now += 10
            charge.close()  # 10 tokens a second
        await quota.charge(team, 900)
        for tokens, wait in ((101, 1.0), (150, 5.0), (400, 30.0), (1000, 60.0)):
            assert (await refused(quota.charge(team, tokens))).retry_after == pytest.approx(wait, abs=1)

    asyncio.run(run())


def test_a_replica_that_died_holds_nothing_for_long(sqlite: Database, clock: Any) -> None:
    async def run() -> None:
        dead, alive = Quota(sqlite, "dead", clock), Quota(sqlite, "alive", clock)
        team = caller(at_once=100)
        await dead.charge(team, 80)
        clock.now += EXPIRY_SECONDS - 1
        await refused(alive.charge(team, 30))
        await dead._write(all_held=True)  # a heartbeat: it was not dead
        clock.now += EXPIRY_SECONDS - 1
        await refused(alive.charge(team, 30))
        clock.now += 1
        charge = await alive.charge(team, 100)
        charge.close()
        await alive._write(all_held=False)  # also forgets the row
        assert not sqlite.read_now(lambda connection: connection.execute(sa.select(in_flight)).all())

    asyncio.run(run())


def test_a_refund_is_at_most_what_was_charged(sqlite: Database, clock: Any) -> None:
    async def run() -> None:
        quota, team = Quota(sqlite, "one", clock), caller(per_minute=1000, at_once=1000)
        charge = await quota.charge(team, 600)
        charge.refund(100)
        charge.refund(10_000)
        charge.refund(10_000)
        charge.close()
        charge.refund(1)
        now = await quota.remaining(team)
        assert (now.tokens_remaining, now.in_flight_tokens, charge.tokens) == (1000, 0, 0)
        # After close too: the tokens were in flight, but not computed.
        charge = await quota.charge(team, 600)
        charge.close()
        charge.refund(600)
        assert (await quota.charge(team, 1000)).tokens == 1000
        await quota.close()
        assert (await Quota(sqlite, "two", clock).remaining(team)).tokens_remaining == 0

    asyncio.run(run())


def test_a_refund_reaches_other_replicas_by_itself(connect: Callable[[], Database]) -> None:
    async def run() -> None:
        one, two = Quota(connect(), "one"), Quota(connect(), "two")
        one.start()
        team = caller(per_minute=6, at_once=6)  # refills one in 10 s
        charge = await one.charge(team, 6)
        charge.refund(6)
        await until(two, team, lambda now: not now.in_flight_tokens)
        await two.charge(team, 6)
        await one.close()
        await one.close()

    asyncio.run(run())


def test_a_refused_charge_leaves_no_trace(sqlite: Database, clock: Any) -> None:
    async def run() -> None:
        quota, team = Quota(sqlite, "one", clock), caller(per_minute=1000, at_once=100)
        held = await quota.charge(team, 80)
        held.refund(10)
        for _ in range(5):
            await refused(quota.charge(team, 50))  # tokens enough, too many in flight
        now = await quota.remaining(team)
        assert (now.tokens_remaining, now.in_flight_tokens) == (930, 70)

    asyncio.run(run())


def test_a_cancelled_charge_is_given_back(database: Database) -> None:
    async def run() -> None:
        quota, team = Quota(database, "one"), caller(per_minute=1000, at_once=1000)
        for turns in range(12):  # cancelled at every stage
            charging = asyncio.create_task(quota.charge(team, 1000))
            for _ in range(turns % 6):
                await asyncio.sleep(0.001 if turns > 5 else 0)
            charging.cancel()
            done = await asyncio.gather(charging, return_exceptions=True)
            if not isinstance(done[0], asyncio.CancelledError):
                done[0].refund(1000)  # type: ignore[union-attr]
            await until(quota, team, lambda now: now.tokens_remaining == 1000 and not now.in_flight_tokens)

    asyncio.run(run())


def test_while_the_database_is_away_nothing_is_charged_and_what_is_given_back_waits() -> None:
    async def run(server: Postgres, database: Database) -> None:
        quota, team = Quota(database, "one"), caller(per_minute=6, at_once=6)
        charge = await quota.charge(team, 6)
        server.stop()
        with pytest.raises(Unavailable):
            await quota.charge(team, 1)
        with pytest.raises(Unavailable):
            await quota.remaining(team)
        charge.refund(4)
        charge.close()
        with pytest.raises(Unavailable):
            await quota._write(all_held=False)
        server.start()
        other = Quota(database, "two")
        assert (await other.remaining(team)).in_flight_tokens == 6
        await quota._write(all_held=False)
        now = await other.remaining(team)
        assert (now.tokens_remaining, now.in_flight_tokens) == (4, 0)
        server.stop()
        await quota.close()  # does not raise

    with Postgres() as server:
        database = Database(server.create_database())
        upgrade(database)
        asyncio.run(run(server, database))
        database.close()


def test_a_refused_charge_hides_no_refund_from_the_next(sqlite: Database, clock: Any) -> None:
    """Both charges come while the event loop is busy, so that nothing runs on it between their transactions."""

    async def run() -> None:
        quota = Quota(sqlite, "one", clock)
        who = caller(per_minute=1000)
        for _ in range(20):
            clock.now += 60
            charge = await quota.charge(who, 1000)
            charge.refund(600)
            charge.close()
            large = asyncio.create_task(quota.charge(who, 900))
            small = asyncio.create_task(quota.charge(who, 500))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.02)  # noqa: ASYNC251  # the loop is busy
            refusal, granted = await asyncio.gather(large, small, return_exceptions=True)
            assert isinstance(refusal, Overloaded)
            assert isinstance(granted, Charge)
            granted.close()

    asyncio.run(run())
