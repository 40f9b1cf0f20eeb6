"""What teams asked for and may ask for: the question as it is sent, and the answer as it is printed."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tokenpriority import AsyncClient, Client, Overloaded
from tokenpriority.cli.app import app
from tokenpriority.cli.coverage import share
from tokenpriority.cli.usage import parse_since, summed
from tokenpriority.schema import Limits, TeamLimits, UsageEntry, UsageReport
from tokenpriority.usage import usage_path

HOUR = 3600
NOW = datetime(2026, 11, 23, 12, 34, 56, tzinfo=UTC)
FIRST = int(datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp())
ENTRIES = [
    UsageEntry(team="b", model="base", hour=FIRST, tokens=10, cached_tokens=0, requests=1, rejections=0),
    UsageEntry(team="a", model="reference", hour=FIRST, tokens=1000, cached_tokens=900, requests=3, rejections=1),
    UsageEntry(team="a", model="", hour=FIRST, tokens=0, cached_tokens=0, requests=0, rejections=2),
    UsageEntry(
        team="a", model="reference", hour=FIRST + HOUR, tokens=2001, cached_tokens=2001, requests=2, rejections=0
    ),
]
LIMITS = Limits(
    max_body_bytes=1000,
    max_sequences=64,
    max_request_tokens=2000,
    max_queued_tokens=4000,
    queued_tokens=300,
    team=TeamLimits(
        team="alpha",
        weight=2.5,
        tokens_per_minute=60_000,
        tokens_remaining=1234,
        concurrent_tokens=None,
        in_flight_tokens=77,
    ),
)


@pytest.fixture(autouse=True)
def facts(server: Any) -> None:
    server.facts = {"/v1/usage": UsageReport(usage=ENTRIES), "/v1/limits": LIMITS}


def run(server: Any, *arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--url", server.url])


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


def test_usage_is_asked_for_as_given(server: Any) -> None:
    with Client(server.url, retries=0) as client:
        assert client.usage() == ENTRIES
        client.usage(since=NOW, until=FIRST + 0.5, model="a/b c&d", team="α")
    assert server.asked[0] == "/v1/usage"
    query = dict(parse_qsl(urlsplit(server.asked[1]).query, strict_parsing=True))
    assert query == {"since": str(int(NOW.timestamp())), "until": str(FIRST + 1), "model": "a/b c&d", "team": "α"}


def test_the_async_client_gives_the_same(server: Any) -> None:
    async def main() -> tuple[list[UsageEntry], Limits]:
        async with AsyncClient(server.url) as client:
            return await client.usage(since=0), await client.limits()

    assert asyncio.run(main()) == (ENTRIES, LIMITS)
    assert server.asked == ["/v1/usage?since=0", "/v1/limits"]


@given(st.integers(0, 10**6), st.floats(-1.5 * HOUR, 1.5 * HOUR), st.booleans())
def test_whole_seconds_let_in_the_same_hours(hour: int, distance: float, as_datetime: bool) -> None:
    """Those that overlap [since, until), whatever fraction of a second the moments have."""
    start = hour * HOUR
    moment = start + distance
    given = datetime.fromtimestamp(moment, UTC) if as_datetime else moment
    exact = given.timestamp() if isinstance(given, datetime) else given
    query = urlsplit(usage_path(given, given, None, None)).query
    sent = {name: int(value) for name, value in parse_qsl(query)}
    assert (start + HOUR > sent["since"]) == (start + HOUR > exact)
    assert (start < sent["until"]) == (start < exact)


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (datetime(2026, 11, 23), "since: needs a time zone, such as datetime.now"),
        (float("nan"), "since: must be finite, got nan"),
        (float("inf"), "since: must be finite, got inf"),
    ],
)
def test_a_moment_that_is_none_is_refused(moment: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        usage_path(moment, None, None, None)


def test_limits_are_told_while_calls_wait_for_a_quota(server: Any) -> None:
    server.always = server.refusing(Overloaded("quota of team alpha"), retry_after="60")

    def score() -> None:
        with pytest.raises(RuntimeError, match="the client is closed"):
            client.score([[n] * 9 for n in range(2000)])

    with Client(server.url) as client:
        scoring = threading.Thread(target=score)
        scoring.start()
        deadline = time.monotonic() + 30
        while len(server.requests) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert client.limits() == LIMITS
        assert client.usage() == ENTRIES
        assert client.ready()
        client.close()
        scoring.join()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", NOW - timedelta(days=1)),
        ("0h", NOW),
        ("7d", NOW - timedelta(days=7)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T10:20", datetime(2026, 11, 1, 10, 20, tzinfo=UTC)),
        ("2026-11-01T10:20:00+05:30", datetime(2026, 11, 1, 4, 50, tzinfo=UTC)),
    ],
)
def test_since_is_a_span_or_a_date(text: str, expected: datetime) -> None:
    assert parse_since(text, NOW) == expected
    assert parse_since(text, NOW.astimezone(timezone(timedelta(hours=-3)))) == expected


@pytest.mark.parametrize(
    "text", ["", "soon", "-1h", "24", "1w", "24h30", "999999d", "2026-13-01", "0001-01-01T00:00+01:00"]
)
def test_another_since_is_refused(text: str, server: Any) -> None:
    with pytest.raises(typer.BadParameter, match=r"must be hours \(24h\), days \(7d\) or a date"):
        parse_since(text, NOW)
    assert run(server, "usage", f"--since={text}").exit_code == 2


def test_hours_are_summed_by_team_and_model() -> None:
    blank, reference, base = summed(ENTRIES)
    assert (blank.team, blank.model, blank.rejections) == ("a", "", 2)
    assert base == ENTRIES[0]
    assert reference == UsageEntry(
        team="a", model="reference", hour=FIRST, tokens=3001, cached_tokens=2901, requests=5, rejections=1
    )
    assert ENTRIES[1].tokens == 1000, "what was given is left as it is"


def test_a_share_is_all_of_it_or_less() -> None:
    assert [share(0, 0), share(0, 7), share(1, 3), share(99_999, 100_000), share(7, 7)] == [
        "-",
        "0.0 %",
        "33.3 %",
        "99.9 %",
        "100.0 %",
    ]


def test_usage_as_a_table(server: Any) -> None:
    done = run(server, "usage", "--since", "2026-11-23", "--team", "a", "--model", "reference")
    assert done.exit_code == 0, done.output
    assert server.asked == [f"/v1/usage?since={FIRST - 10 * HOUR}&model=reference&team=a"]
    assert cells(done.stdout) == [
        ["a", "-", "0", "-", "0", "2"],
        ["a", "reference", "3,001", "96.6 %", "5", "1"],
        ["b", "base", "10", "0.0 %", "1", "0"],
    ]
    for word in ("tokens", "from the store", "requests", "rejected"):
        assert word in done.stdout


def test_usage_of_each_hour(server: Any) -> None:
    rows = cells(run(server, "usage", "--by", "hour").stdout)
    assert rows[1] == ["2026-11-23 10:00", "a", "reference", "1,000", "90.0 %", "3", "1"]
    assert rows[3] == ["2026-11-23 11:00", "a", "reference", "2,001", "100.0 %", "2", "0"]
    assert run(server, "usage", "--by", "day").exit_code == 2


def test_usage_for_programs_and_of_nothing(server: Any) -> None:
    listed = json.loads(run(server, "usage", "--json").stdout)
    assert [entry["hour"] for entry in listed["usage"]] == [FIRST, FIRST, FIRST, FIRST + HOUR]
    assert listed["usage"][1]["cached_tokens"] == 900
    server.facts["/v1/usage"] = UsageReport(usage=[])
    assert json.loads(run(server, "usage", "--json").stdout) == {"usage": []}
    assert run(server, "usage", "--since", "2026-11-01").stdout == "nothing was asked for since 2026-11-01 00:00 UTC\n"


def test_limits_as_a_table_and_for_programs(server: Any) -> None:
    rows = {row[0]: row[1:] for row in cells(run(server, "limits").stdout)}
    assert rows["team"] == ["alpha", ""]
    assert rows["weight"] == ["2.5", ""]
    assert rows["tokens per minute"] == ["60,000", "1,234 left"]
    assert rows["concurrent tokens"] == ["none", "77 in flight"]
    assert rows["queued tokens, all teams"] == ["4,000", "300 queued"]
    printed = json.loads(run(server, "limits", "--json").stdout)
    assert printed["team"]["tokens_remaining"] == 1234
    assert printed["team"]["concurrent_tokens"] is None


def test_a_server_that_is_not_there_is_one_line() -> None:
    for command in ("usage", "limits"):
        done = CliRunner().invoke(app, [command, "--url", "http://127.0.0.1:9"])
        assert (done.exit_code, done.stdout) == (1, "")
        assert re.fullmatch(r"ConnectionFailed: GET .*: no answer in 3 attempts \(.*\)\n", done.stderr)
