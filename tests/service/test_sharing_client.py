"""The client against one server of several teams: what is stored, who waits, quotas that are waited out, usage."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from tokenpriority import (
    AsyncClient,
    Client,
    Coverage,
    Covered,
    Forbidden,
    NotStored,
    Overloaded,
    ScoreFailure,
    SequenceErrors,
)
from tokenpriority.cli.app import app
from tokenpriority.schema import UsageEntry
from tokenpriority_service.configuration.settings import DatabaseSettings, Settings
from tokenpriority_service.database.database import Database
from tokenpriority_service.store import BLOCK_TOKENS
from tokenpriority_service.teams import keys
from tokenpriority_service.teams.caller import Limits, Scope
from tokenpriority_service.teams.limits import set_limits


class World:
    """A running server, and an operator's hands on its database."""

    def __init__(self, running: Any, database: Database, probe: Any) -> None:
        self.running, self.url, self.probe = running, running.url, probe
        self._database = database

    def key(self, team: str, scope: Scope = "score", **limits: Any) -> str:
        """A new key of a team, with these limits if any."""
        if limits:
            self._database.write_now(lambda c: set_limits(c, team, Limits(**limits)))
        return self._database.write_now(lambda c: keys.create(c, team, (scope,)))[1]


@pytest.fixture
def world(serve: Any, probe: Any, tmp_path: Path) -> Iterator[World]:
    url = f"sqlite:///{tmp_path}/state.db"
    database = Database(url)
    with serve({"reference": probe}, Settings(database=DatabaseSettings(url=url))) as running:
        yield World(running, database, probe)
    database.close()


def ids(seed: int, length: int) -> np.ndarray[Any, Any]:
    """Token ids of a seed's own."""
    return np.concatenate([[seed // 250, seed % 250], np.arange(length - 2) % 250])


def test_coverage_is_what_cached_only_answers(world: World) -> None:
    rng = np.random.default_rng(1)
    dataset = [ids(n, int(length)) for n, length in enumerate(rng.integers(2, 300, 200))]
    with Client(world.url, retries=0) as client:
        client.score([dataset[n] for n in range(0, 200, 2)])
        client.score([dataset[n][:BLOCK_TOKENS] for n in range(1, 200, 2) if len(dataset[n]) > BLOCK_TOKENS])
        computed = len(world.probe.jobs)

        coverage = client.coverage(iter(dataset))
        for n, item in enumerate(coverage.items):
            length = len(dataset[n])
            beginning = BLOCK_TOKENS if length > BLOCK_TOKENS else 0
            assert item == Covered(n, length, length if n % 2 == 0 else beginning)
        assert coverage.tokens == sum(map(len, dataset))
        assert coverage.stored_tokens == sum(item.stored_tokens for item in coverage.items if isinstance(item, Covered))
        assert (coverage.stored_sequences, coverage.failed_sequences, coverage.complete) == (100, 0, False)

        results = list(client.score_many(dataset, cached_only=True, errors="return"))
        for n, result in enumerate(results):
            assert isinstance(result, ScoreFailure) == (n % 2 == 1)
            assert not isinstance(result, ScoreFailure) or type(result.error) is NotStored
        assert len(world.probe.jobs) == computed, "neither computes anything"

        client.score(dataset)
        assert client.coverage(dataset).complete
        again = client.score(dataset, cached_only=True)
        assert all(scores.cached for scores in again)
        np.testing.assert_array_equal(again[0].logprobs, results[0].logprobs)  # type: ignore[union-attr]


def test_every_form_and_the_async_client(world: World) -> None:
    forms = ["a text", {"prompt": "2+2=", "completion": "4"}, {"token_ids": [10**6]}, {"id": "x", "text": "other"}]

    async def main() -> tuple[Coverage, Coverage]:
        async with AsyncClient(world.url, retries=0) as client:
            before = await client.coverage(forms)
            await client.score(forms[:2])
            with pytest.raises(SequenceErrors) as caught:
                await client.score([forms[0], forms[3]], cached_only=True)
            assert list(caught.value.failures) == [1]
            assert caught.value.results[0] is not None
            return before, await client.coverage(forms)

    before, after = asyncio.run(main())
    assert [item.id for item in after.items] == [0, 1, 2, "x"]
    assert (before.stored_sequences, before.failed_sequences, before.stored_tokens) == (0, 1, 0)
    assert (after.stored_sequences, after.failed_sequences) == (2, 1)
    assert before.tokens == after.tokens == len("a text") + len("2+2=4") + len("other"), "text is counted in tokens"


def test_a_trainer_takes_what_is_stored_alone(world: World) -> None:
    batches = [[ids(n, 20), ids(n + 100, 30)] for n in range(5)]
    with Client(world.url, retries=0) as client:
        client.score([each for batch in batches[:4] for each in batch])
        computed = len(world.probe.jobs)
        with client.prefetch(batches, cached_only=True) as prefetch:
            for batch in batches[:4]:
                taken, stored = next(prefetch)
                assert taken is batch
                assert all(scores.cached for scores in stored)
            with pytest.raises(SequenceErrors) as caught:
                next(prefetch)
        assert all(type(error) is NotStored for error in caught.value.failures.values())
        assert len(world.probe.jobs) == computed


def test_who_waits_is_told_to_the_queue(world: World) -> None:
    boss = world.key("platform", "admin")
    with Client(world.url, api_key=boss, service_class="bulk") as client:
        client.score([ids(1, 9)])
    text = world.running.http.get("/metrics", headers={"authorization": f"Bearer {boss}"}).text
    counts = {
        match[1]: float(match[2])
        for match in re.finditer(r'^tokenpriority_queue_\w+_count{.*class="(\w+)".*} (\S+)$', text, re.MULTILINE)
    }
    assert counts["bulk"] >= 1
    assert not counts.get("interactive")


def test_a_run_waits_its_quota_out(world: World) -> None:
    """Of 61,200 tokens the first minute's 60,000 are there at once; the others come at 1,000 a second."""
    key = world.key("alpha", tokens_per_minute=60_000)
    dataset = [ids(n, 200) for n in range(306)]
    began = time.monotonic()
    with Client(world.url, api_key=key, retries=1) as client:
        assert [scores.token_ids.tolist() for scores in client.score_many(dataset)] == [i.tolist() for i in dataset]
    assert time.monotonic() - began >= 1.0
    assert sum(len(job.token_ids) for job in world.probe.jobs) == 61_200, "nothing was computed twice"


def test_a_quota_smaller_than_a_request_takes_it_in_parts(world: World) -> None:
    key = world.key("alpha", tokens_per_minute=600_000, concurrent_tokens=1_000)
    dataset = [ids(n, 90) for n in range(64)]
    with Client(world.url, api_key=key, retries=1) as client:
        [*scored, refused] = client.score_many([*dataset, ids(64, 1_001)], errors="return")
    assert [scores.id for scores in scored] == list(range(64))
    assert isinstance(refused, ScoreFailure)
    assert "1001 tokens" in str(refused.error)
    assert sum(len(job.token_ids) for job in world.probe.jobs) == 64 * 90


def test_a_long_wait_is_refused_where_nobody_would_wait(world: World) -> None:
    key = world.key("alpha", tokens_per_minute=100)
    with Client(world.url, api_key=key, max_wait=5.0) as client:
        client.score([ids(0, 90)])
        with pytest.raises(Overloaded, match=r"alpha.*tokens_per_minute") as refused:
            client.score([ids(1, 90)])
        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 5
        assert client.coverage([ids(1, 90)]).stored_tokens == 0, "looking up is free"
        assert client.limits().team.tokens_remaining is not None


def test_limits_are_the_teams_own(world: World) -> None:
    key = world.key("alpha", weight=3.0, tokens_per_minute=10_000, concurrent_tokens=5_000)
    with Client(world.url, api_key=key) as client, Client(world.url, api_key=world.key("beta")) as other:
        client.score([ids(1, 4_000)])
        team = client.limits().team
        assert (team.team, team.weight, team.tokens_per_minute, team.concurrent_tokens) == ("alpha", 3.0, 10_000, 5_000)
        assert team.tokens_remaining is not None
        assert 6_000 <= team.tokens_remaining < 10_000
        assert team.in_flight_tokens == 0
        assert other.limits().team.tokens_per_minute is None


def counted(entries: list[UsageEntry]) -> list[tuple[str, str, int, int, int, int]]:
    return sorted((e.team, e.model, e.tokens, e.cached_tokens, e.requests, e.rejections) for e in entries)


def test_usage_by_team_model_and_hour(world: World) -> None:
    alpha, boss = world.key("alpha", tokens_per_minute=100), world.key("platform", "admin")
    began = datetime.now(UTC)
    with Client(world.url, api_key=alpha, max_wait=0.0) as client:
        client.score([ids(1, 80)])
        client.score([ids(1, 80)])
        with pytest.raises(Overloaded):
            client.score([ids(2, 80)])
        own = ("alpha", "reference", 160, 80, 2, 1)
        assert counted(client.usage()) == [own]
        with pytest.raises(Forbidden, match="team"):
            client.usage(team="platform")
    with Client(world.url, api_key=boss) as client:
        client.score([ids(3, 10)])
        both = [own, ("platform", "reference", 10, 0, 1, 0)]
        assert counted(client.usage()) == both
        assert counted(client.usage(since=began)) == both, "the hour that has begun is of it"
        assert counted(client.usage(team="alpha", model="reference", since=began.timestamp())) == [own]
        assert client.usage(until=began - timedelta(hours=1)) == client.usage(model="nobody") == []
        assert client.usage(since=began + timedelta(hours=2)) == []


@pytest.fixture
def run(world: World) -> Callable[..., Result]:
    environment = {"COLUMNS": "200", "TOKENPRIORITY_URL": world.url, "TOKENPRIORITY_API_KEY": world.key("alpha")}

    def command(*arguments: object) -> Result:
        done = CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done

    return command


def test_the_commands(world: World, run: Callable[..., Result], tmp_path: Path) -> None:
    source, part = tmp_path / "in.jsonl", tmp_path / "part.jsonl"
    rows = [json.dumps({"token_ids": ids(n, 50).tolist()}) + "\n" for n in range(30)]
    source.write_text("".join(rows))
    part.write_text("".join(rows[:20]))
    sums = {"sequences": 30, "stored_sequences": 0, "failed_sequences": 0, "tokens": 1500, "stored_tokens": 0}
    assert json.loads(run("coverage", source, "--json").stdout) == {**sums, "complete": False}
    run("score", part, "--out", tmp_path / "part.parquet")
    printed = run("coverage", source).stdout
    assert printed == f"{source}: 20 of 30 sequences are stored whole, 66.6 % of 1,500 tokens\n"
    run("score", source, "--out", tmp_path / "out.parquet", "--cached-only")
    errors = [row["error"] for row in parquet.read_table(tmp_path / "out.parquet").to_pylist()]
    assert errors[:20] == [None] * 20
    assert all("stored" in error for error in errors[20:])
    assert sum(len(job.token_ids) for job in world.probe.jobs) == 20 * 50

    usage = run("usage", "--since", "2h").stdout
    [row] = [line for line in usage.splitlines() if "alpha" in line]
    assert [cell.strip() for cell in row.split("│")[1:6]] == ["alpha", "reference", "2,000", "50.0 %", "2"]
    assert re.search(r"team +│ +alpha ", run("limits").stdout)
