"""Usage adds up, hour by hour, whoever writes it and whenever the database answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postgres import Postgres
from tokenpriority.errors import Unavailable
from tokenpriority.schema import UsageEntry
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.tables import usage
from tokenpriority_service.database.upgrade import upgrade
from tokenpriority_service.teams import usage as usage_module
from tokenpriority_service.teams.usage import HOUR, UsageLog

ALWAYS = (0.0, 1e12)


def test_replicas_add_to_the_same_rows(connect: Callable[[], Database], clock: Any) -> None:
    async def run() -> None:
        logs = [UsageLog(connect(), clock) for _ in range(3)]
        for log in logs:
            log.start()

        async def work(log: UsageLog, number: int) -> None:
            for turn in range(60):
                log.add(f"team {turn % 4}", "reference", tokens=turn, cached_tokens=1, requests=1)
                log.add("team 0", "base", rejections=number)
                if turn % 7 == number:
                    await log.read(None, None, *ALWAYS)
                await asyncio.sleep(0)

        await asyncio.gather(*(work(log, number) for number, log in enumerate(logs)))
        for log in logs:
            await log.close()
        hour = int(clock.now // HOUR * HOUR)
        expected = [
            UsageEntry(team="team 0", model="base", hour=hour, tokens=0, cached_tokens=0, requests=0, rejections=180)
        ]
        for team in range(4):
            tokens = 3 * sum(range(team, 60, 4))
            expected.append(
                UsageEntry(
                    team=f"team {team}",
                    model="reference",
                    hour=hour,
                    tokens=tokens,
                    cached_tokens=45,
                    requests=45,
                    rejections=0,
                )
            )
        assert await logs[0].read(None, None, *ALWAYS) == expected

    asyncio.run(run())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    added=st.lists(
        st.tuples(
            st.sampled_from(("alpha", "beta")),
            st.sampled_from(("", "reference", "base")),
            st.integers(0, 6 * HOUR),
            st.integers(0, 2**40),
        ),
        max_size=25,
    ),
    since=st.integers(-HOUR, 7 * HOUR),
    length=st.integers(0, 7 * HOUR),
)
def test_what_is_read_is_what_was_added(
    sqlite: Database, clock: Any, added: list[tuple[str, str, int, int]], since: int, length: int
) -> None:
    async def run() -> None:
        sqlite.write_now(lambda connection: connection.execute(sa.delete(usage)))
        log, zero = UsageLog(sqlite, clock), 1_750_003_200
        assert zero % HOUR == 0
        sums: dict[tuple[int, str, str], int] = defaultdict(int)
        for team, model, at, tokens in added:
            clock.now = zero + at
            log.add(team, model, tokens=tokens)
            sums[(zero + at // HOUR * HOUR, team, model)] += tokens
        begin, end = zero + since, zero + since + length
        for team_wanted, model_wanted in ((None, None), ("alpha", None), (None, ""), ("beta", "base")):
            expected = [
                (*place, tokens)
                for place, tokens in sorted(sums.items())
                if begin < place[0] + HOUR
                and place[0] < end
                and team_wanted in (None, place[1])
                and model_wanted in (None, place[2])
            ]
            entries = await log.read(team_wanted, model_wanted, begin, end)
            assert [(each.hour, each.team, each.model, each.tokens) for each in entries] == expected

    asyncio.run(run())


def test_an_hour_begins_on_the_hour_in_utc(sqlite: Database, clock: Any) -> None:
    async def run() -> list[UsageEntry]:
        log = UsageLog(sqlite, clock)
        for minute, second in ((58, 59.999), (59, 59.999)):
            clock.now = datetime(2026, 3, 29, 0, minute, tzinfo=UTC).timestamp() + second
            log.add("alpha", "reference", tokens=1)
        clock.now = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()
        log.add("alpha", "reference", tokens=10)
        return await log.read("alpha", None, *ALWAYS)

    read = [(datetime.fromtimestamp(each.hour, UTC), each.tokens) for each in asyncio.run(run())]
    assert read == [(datetime(2026, 3, 29, hour, tzinfo=UTC), tokens) for hour, tokens in ((0, 2), (1, 10))]


def test_without_a_beginning_the_last_days_are_read(sqlite: Database, clock: Any) -> None:
    async def run() -> None:
        log, now = UsageLog(sqlite, clock), 1_750_003_200 + 600
        ages = [0, 1, 30 * 24, 31 * 24, 31 * 24 + 1, 32 * 24, 62 * 24]  # hours
        for age in ages:
            clock.now = now - age * HOUR
            log.add("alpha", "reference", tokens=age)
        clock.now = now

        async def read(since: float | None, until: float | None) -> list[int]:
            return sorted(each.tokens for each in await log.read(None, None, since, until))

        assert await read(0, None) == ages
        assert await read(None, None) == await read(None, now + 1e9) == ages[:4]
        assert await read(None, now - 31 * 24 * HOUR) == ages[3:], "as many days before an end that is past"
        assert await read(now - 24 * HOUR, None) == ages[:2]

    asyncio.run(run())


def test_many_rows_at_once(database: Database, clock: Any) -> None:
    async def run() -> None:
        log = UsageLog(database, clock)
        for _ in range(2):
            for number in range(1300):
                log.add(f"team {number:04}", "reference", requests=number)
            await log.read("nobody", None, *ALWAYS)
        entries = await log.read(None, None, *ALWAYS)
        assert [each.requests for each in entries] == [2 * number for number in range(1300)]

    asyncio.run(run())


def test_nothing_is_lost_while_the_database_is_away(caplog: pytest.LogCaptureFixture) -> None:
    async def run(server: Postgres, database: Database) -> None:
        log = UsageLog(database)
        log.start()
        log.add("alpha", "reference", tokens=1)
        await log.read(None, None, *ALWAYS)
        server.stop()
        for _ in range(1000):
            log.add("alpha", "reference", tokens=1)
        with pytest.raises(Unavailable):
            await log.read(None, None, *ALWAYS)
        for _ in range(1000):
            log.add("alpha", "reference", tokens=1)
        assert len(log._waiting) <= 2, "merged: one row, or two where the hour ended meanwhile"
        server.start()
        assert sum(each.tokens for each in await log.read(None, None, *ALWAYS)) == 2001
        log.add("alpha", "reference", tokens=7)
        await log.close()
        log.add("alpha", "reference", tokens=8)
        server.stop()
        with caplog.at_level(logging.WARNING):
            await log.close()
        assert "usage: the database is away; 8 tokens of 1 hours lost" in caplog.text
        server.start()
        assert sum(each.tokens for each in await UsageLog(database).read(None, None, *ALWAYS)) == 2008

    with Postgres() as server:
        database = Database(server.create_database())
        upgrade(database)
        asyncio.run(run(server, database))
        database.close()


def test_written_by_itself_within_seconds(connect: Callable[[], Database]) -> None:
    async def run() -> None:
        log, reader = UsageLog(connect()), UsageLog(connect())
        log.start()
        log.add("alpha", "reference", tokens=3)
        for _ in range(1000):
            if await reader.read(None, None, *ALWAYS):
                break
            await asyncio.sleep(0.05)
        assert [each.tokens for each in await reader.read(None, None, *ALWAYS)] == [3]
        await log.close()

    asyncio.run(run())


def test_a_read_whose_reader_leaves_counts_once(
    database: Database, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = usage_module._add

    def slowly(*given: Any) -> None:
        add(*given)
        time.sleep(0.2)

    async def run() -> None:
        log = UsageLog(database, clock)
        log.add("alpha", "reference", tokens=10, requests=1)
        monkeypatch.setattr(usage_module, "_add", slowly)
        reader = asyncio.create_task(log.read(None, None, *ALWAYS))
        await asyncio.sleep(0.05)
        reader.cancel()
        # Another one sees what is being written just now, once.
        entries = await log.read(None, None, *ALWAYS)
        assert [(each.tokens, each.requests) for each in entries] == [(10, 1)]
        await log.close()
        assert [each.tokens for each in await log.read(None, None, *ALWAYS)] == [10]

    asyncio.run(run())
