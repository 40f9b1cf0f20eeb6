"""One server, several teams: keys that hold at once, quotas, usage, isolation, what is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from tokenpriority import wire
from tokenpriority_service.configuration.settings import (
    DatabaseSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    TeamSettings,
)
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.tables import usage as usage_table
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.store import BLOCK_TOKENS
from tokenpriority_service.teams import keys
from tokenpriority_service.teams.caller import Limits, Scope
from tokenpriority_service.teams.limits import set_limits


class Shared:
    """A server on a database file, and an operator's hands on the same file."""

    def __init__(self, serve: Any, folder: Path, probe: Any, **settings: Any) -> None:
        self.url = f"sqlite:///{folder}/state.db"
        self.database = Database(self.url)
        self.probe = probe
        self.running = serve({"reference": probe}, Settings(database=DatabaseSettings(url=self.url), **settings))

    def key(self, team: str, *scopes: Scope) -> dict[str, str]:
        """A new key of a team, as a header."""
        _, key = self.database.write_now(lambda c: keys.create(c, team, scopes or ("score",)))
        return {"authorization": f"Bearer {key}"}

    def limit(self, team: str, **limits: Any) -> None:
        self.database.write_now(lambda c: set_limits(c, team, Limits(**limits)))


@pytest.fixture
def shared(serve: Any, probe: Any, tmp_path: Path) -> Iterator[Callable[..., Shared]]:
    made: list[Shared] = []

    def make(**settings: Any) -> Shared:
        made.append(Shared(serve, tmp_path, probe, **settings))
        return made[-1]

    yield make
    for each in made:
        each.database.close()


def body(*lengths: int, start: int = 0, **envelope: Any) -> dict[str, Any]:
    """A request of sequences that no other length or `start` has."""
    sequences = [{"token_ids": [start, number, *([n % 250] * (n - 2))]} for number, n in enumerate(lengths)]
    return {"sequences": sequences, **envelope}


def test_keys_hold_from_the_next_request_on(shared: Any) -> None:
    world = shared()
    with world.running as server:
        assert server.post(body(3)).status_code == 200
        alpha = world.key("alpha")
        assert server.post(body(3)).status_code == 401
        assert server.post(body(3), **alpha).status_code == 200
        world.database.write_now(lambda c: keys.revoke(c, "alpha"))
        assert server.post(body(3), **alpha).status_code == 401
        assert server.post(body(3)).status_code == 401, "revoking the last key must not open the server"


def test_admin_routes_want_their_scope(shared: Any) -> None:
    world = shared()
    with world.running as server:
        alpha, boss = world.key("alpha"), world.key("platform", "admin")
        refused = server.http.get("/metrics", headers=alpha)
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "forbidden")
        assert "admin" in refused.json()["error"]["message"]
        metrics = server.http.get("/metrics", headers=boss)
        assert metrics.status_code == 200
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "tokenpriority_requests_total" in metrics.text
        assert server.post(body(3), **boss).status_code == 200


def test_the_charge_is_exact_and_what_is_stored_is_free(shared: Any) -> None:
    world = shared()
    with world.running as server:
        alpha = world.key("alpha")
        world.limit("alpha", tokens_per_minute=100)
        first = server.post(body(30, 30), **alpha)
        assert first.status_code == 200
        assert int(first.headers["x-ratelimit-limit-tokens"]) == 100
        assert 39 <= int(first.headers["x-ratelimit-remaining-tokens"]) <= 45
        assert 30 <= int(first.headers["x-ratelimit-reset-tokens"]) <= 37
        for _ in range(5):
            again = server.post(body(30, 30), **alpha)
            assert (again.status_code, again.headers["x-tokenpriority-cached-tokens"]) == (200, "60")
            assert 39 <= int(again.headers["x-ratelimit-remaining-tokens"]) <= 60
        refused = server.post(body(80, start=1), **alpha)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "overloaded")
        assert 30 <= int(refused.headers["x-ratelimit-remaining-tokens"]) <= 60
        message = refused.json()["error"]["message"]
        assert all(part in message for part in ("alpha", "100", "tokens_per_minute", "80"))
        # 80 wanted, about 40 there, 100 a minute.
        assert 15 <= int(refused.headers["retry-after"]) <= 25
        never = server.post(body(101, start=2), **alpha)
        assert (never.status_code, never.json()["error"]["type"]) == (413, "too_large")
        assert server.post(body(80, start=1), **world.key("beta")).status_code == 200


def test_a_known_beginning_is_free(shared: Any) -> None:
    world = shared()
    with world.running as server:
        alpha = world.key("alpha")
        world.limit("alpha", tokens_per_minute=200)
        ids = [n % 250 for n in range(3 * BLOCK_TOKENS)]
        assert server.post({"sequences": [{"token_ids": ids[: 2 * BLOCK_TOKENS]}]}, **alpha).status_code == 200
        before = server.http.get("/v1/limits", headers=alpha).json()["team"]["tokens_remaining"]
        answer = server.post({"sequences": [{"token_ids": ids}]}, **alpha)
        assert answer.headers["x-tokenpriority-cached-tokens"] == str(2 * BLOCK_TOKENS)
        spent = before - int(answer.headers["x-ratelimit-remaining-tokens"])
        assert BLOCK_TOKENS - 30 <= spent <= BLOCK_TOKENS, "the bucket refills by 3 a second"


def test_work_that_fails_is_not_charged(shared: Any) -> None:
    world = shared()
    with world.running as server:
        alpha = world.key("alpha")
        world.limit("alpha", tokens_per_minute=1000)
        world.probe.spoil = lambda job, rows: RuntimeError("broken")
        assert server.post(body(600), **alpha).status_code == 503
        world.probe.spoil = None
        assert server.post(body(900), **alpha).status_code == 200


def test_concurrent_tokens_are_those_in_flight(shared: Any, wait_until: Callable[..., None]) -> None:
    world = shared()
    with world.running as server, ThreadPoolExecutor(4) as pool:
        alpha = world.key("alpha")
        world.limit("alpha", concurrent_tokens=100)
        world.probe.release.clear()
        held = pool.submit(server.post, body(80), **alpha)
        wait_until(lambda: bool(world.probe.jobs), "the job in the engine")
        assert server.http.get("/v1/limits", headers=alpha).json()["team"]["in_flight_tokens"] == 80
        refused = server.post(body(30, start=1), **alpha)
        assert refused.status_code == 429
        assert "concurrent_tokens" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        joined = pool.submit(server.post, body(80), **alpha)  # the same: computed once, charged once
        world.probe.release.set()
        assert held.result().status_code == joined.result().status_code == 200
        assert server.post(body(30, start=1), **alpha).status_code == 200


def test_no_team_fills_the_queue_of_others(shared: Any, wait_until: Callable[..., None]) -> None:
    world = shared(server=ServerSettings(max_request_tokens=500, max_queued_tokens=1000))
    with world.running as server, ThreadPoolExecutor(8) as pool:
        alpha, beta = world.key("alpha"), world.key("beta")
        world.probe.release.clear()
        held = [pool.submit(server.post, body(250, start=n), **alpha) for n in (1, 2)]
        wait_until(lambda: server.service.admission.queued_tokens == 500, "alpha's tokens")
        refused = server.post(body(250, start=3), **alpha)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "overloaded")
        held.append(pool.submit(server.post, body(450, start=4), **beta))
        wait_until(lambda: server.service.admission.queued_tokens == 950, "beta's tokens")
        full = server.post(body(100, start=5), **world.key("gamma"))
        assert (full.status_code, full.json()["error"]["type"]) == (503, "unavailable")
        assert int(full.headers["retry-after"]) >= 1
        world.probe.release.set()
        assert [each.result().status_code for each in held] == [200, 200, 200]
        boss = world.key("platform", "admin")
        usage = server.http.get("/v1/usage", headers=boss).json()["usage"]
        assert {(e["team"], e["rejections"]) for e in usage if e["rejections"]} == {("alpha", 1), ("gamma", 1)}
        metrics = server.http.get("/metrics", headers=boss).text
        assert 'tokenpriority_rejections_total{reason="share",team="alpha"} 1.0' in metrics
        assert 'tokenpriority_rejections_total{reason="server_full",team="gamma"} 1.0' in metrics


def test_usage_by_team_and_model(shared: Any) -> None:
    world = shared()
    with world.running as server:
        alpha, beta, boss = world.key("alpha"), world.key("beta"), world.key("platform", "admin")
        for _ in range(2):
            assert server.post(body(10, 20), **alpha).status_code == 200
        assert server.post(body(5, start=1), **beta).status_code == 200

        def usage(key: dict[str, str], **query: Any) -> list[Any]:
            answer = server.http.get("/v1/usage", headers=key, params=query)
            assert answer.status_code == 200, answer.text
            return [
                (e["team"], e["model"], e["tokens"], e["cached_tokens"], e["requests"]) for e in answer.json()["usage"]
            ]

        a, b = ("alpha", "reference", 60, 30, 2), ("beta", "reference", 5, 0, 1)
        assert usage(alpha) == [a]
        assert sorted(usage(boss)) == [a, b]
        assert usage(boss, team="beta") == [b]
        assert usage(boss, model="base") == usage(boss, until=1) == []
        assert server.http.get("/v1/usage?team=alpha", headers=beta).status_code == 403
        unknown = server.http.get("/v1/usage?sice=1", headers=alpha)
        assert (unknown.status_code, "'sice'" in unknown.json()["error"]["message"]) == (422, True)
        bad = server.http.get("/v1/usage?since=-1", headers=alpha)
        assert bad.status_code == 422
        assert bad.json()["error"]["message"].startswith("since: ")


def test_usage_is_of_the_last_month_unless_asked_for(shared: Any) -> None:
    world = shared()
    with world.running as server:
        alpha = world.key("alpha")
        counts = {"tokens": 1, "cached_tokens": 0, "requests": 1, "rejections": 0}
        month, hour = 31 * 24 * 3600, int(time.time()) // 3600 * 3600
        hours = [hour, hour - month + 3600, hour - month - 3600, 0]
        rows = [{"team": "alpha", "model": "reference", "hour": each, **counts} for each in hours]
        world.database.write_now(lambda connection: connection.execute(sa.insert(usage_table), rows))

        def told(query: str) -> list[int]:
            answer = server.http.get(f"/v1/usage{query}", headers={**alpha, "accept": wire.MSGPACK})
            assert answer.status_code == 200, answer.text
            return [each["hour"] for each in msgspec.msgpack.decode(answer.content)["usage"]][::-1]

        assert told("") == hours[:2]
        assert told("?since=0") == hours
        assert told(f"?until={hour - month}") == hours[2:3]
        [parameter] = [
            each
            for each in server.http.get("/openapi.json").json()["paths"]["/v1/usage"]["get"]["parameters"]
            if each["name"] == "since"
        ]
        assert "31 days" in parameter["description"]
        assert (parameter["required"], parameter["schema"]["type"]) == (False, "integer")


def test_the_store_may_be_each_teams_own(shared: Any) -> None:
    world = shared(store=StoreSettings(scope="team"))
    with world.running as server:
        alpha, beta = world.key("alpha"), world.key("beta")
        answers = [server.post(body(100), **key) for key in (alpha, beta, alpha)]
        assert [each.headers["x-tokenpriority-cached-tokens"] for each in answers] == ["0", "0", "100"]
        assert len(world.probe.jobs) == 2
        assert len({job.salt for job in world.probe.jobs}) == 2
        stored = [server.http.post("/v1/coverage", json=body(100, 50), headers=k).json() for k in (alpha, beta)]
        assert [each["stored_tokens"] for each in stored] == [100, 100]


def test_work_in_progress_is_each_teams_own_too(shared: Any, wait_until: Callable[..., None]) -> None:
    world = shared(store=StoreSettings(scope="team"))
    with world.running as server, ThreadPoolExecutor(4) as pool:
        alpha, beta = world.key("alpha"), world.key("beta")
        world.probe.release.clear()
        answers = [pool.submit(server.post, body(100), **key) for key in (alpha, beta)]
        wait_until(lambda: len(world.probe.jobs) == 2, "both jobs")
        world.probe.release.set()
        assert [each.result().status_code for each in answers] == [200, 200]


def test_cached_only_computes_nothing(shared: Any) -> None:
    world = shared()
    with world.running as server:
        ids = list(range(90))
        known = server.score({"token_ids": ids[:70]})[0]
        computed = len(world.probe.jobs)
        answer = server.post({"sequences": [{"token_ids": ids[:70]}, {"id": 0, "token_ids": ids}], "cached_only": True})
        assert answer.status_code == 200
        stored, missing = answer.json()["results"]
        assert stored == {**known, "cached": True}
        assert missing["error"]["type"] == "not_stored"
        assert "64 of 90" in missing["error"]["message"]
        entry = server.http.get("/v1/usage").json()["usage"][0]
        assert (entry["tokens"], entry["cached_tokens"]) == (140, 70), "what was not answered is not counted"
        assert (
            'tokenpriority_tokens_total{model="reference",source="engine",team="-"} 70.0'
            in server.http.get("/metrics").text
        )
        assert len(world.probe.jobs) == computed


def test_coverage(shared: Any) -> None:
    world = shared()
    with world.running as server:
        server.score({"token_ids": list(range(70))})
        request = {"sequences": [{"id": "all", "token_ids": list(range(70))}, {"token_ids": list(range(200))},
                                 {"id": "none", "token_ids": [9, 9]}, {"id": "bad", "token_ids": [10**6]}]}  # fmt: skip
        answer = server.http.post("/v1/coverage", json=request).json()
        assert [(r["id"], r.get("tokens"), r.get("stored_tokens")) for r in answer["results"]] == [
            ("all", 70, 70),
            (1, 200, 64),
            ("none", 2, 0),
            ("bad", None, None),
        ]
        assert answer["results"][3]["error"]["type"] == "invalid_sequence"
        sums = {name: answer[name] for name in ("sequences", "stored_sequences", "tokens", "stored_tokens")}
        assert sums == {"sequences": 3, "stored_sequences": 1, "tokens": 272, "stored_tokens": 134}
        assert len(world.probe.jobs) == 1


def test_what_was_scored_outlives_the_server(shared: Any, serve: Any) -> None:
    world = shared()
    with world.running as server:
        first = server.post(body(100, 200)).json()["results"]
    with serve({"reference": FakeEngine()}, Settings(database=DatabaseSettings(url=world.url))) as server:
        answer = server.post(body(100, 200))
        assert answer.headers["x-tokenpriority-cached-tokens"] == "300"
        assert [{**each, "cached": False} for each in answer.json()["results"]] == first


def test_a_team_declared_in_the_file_has_the_files_limits(shared: Any) -> None:
    world = shared(teams={"alpha": TeamSettings(weight=3.0, tokens_per_minute=50)})
    with world.running as server:
        alpha = world.key("alpha")
        world.limit("alpha", tokens_per_minute=10**6)
        team = server.http.get("/v1/limits", headers=alpha).json()["team"]
        assert (team["weight"], team["tokens_per_minute"], team["team"]) == (3.0, 50, "alpha")
        assert server.post(body(51), **alpha).status_code == 413
