"""An engine that breaks and comes back: everybody is told at once, nothing wrong is kept, no other model suffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tokenpriority import Client, ConnectionFailed
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.scheduling import feed
from tokenpriority_service.scheduling.window import FIRST_SLICE_TOKENS

BODY = {"sequences": [{"token_ids": [1, 2, 3]}]}
WHY = "its process died and is being restarted"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "WATCH_SECONDS", 0.02)


def refused(response: Any) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (503, "unavailable"), error
    assert WHY in error["message"]
    assert int(response.headers["retry-after"]) >= 1


def test_readiness_follows_the_engine_and_touches_no_other(serve: Any, make_probe: Callable[..., Any]) -> None:
    broken, sound = make_probe(FakeEngine()), make_probe(FakeEngine(model="other"))
    with serve({"reference": broken, "base": sound}) as server:
        assert server.http.get("/readyz").status_code == 200
        broken.fault = WHY
        refused(server.http.get("/readyz"))
        assert "'base'" not in server.http.get("/readyz").json()["error"]["message"]
        refused(server.post(BODY))
        assert server.post({**BODY, "model": "base"}).status_code == 200
        listed = {each["name"]: each for each in server.http.get("/v1/models").json()["models"]}
        assert (listed["reference"]["ready"], listed["reference"]["fault"]) == (False, WHY)
        assert listed["reference"]["error"] is None, "which would say that waiting is in vain"
        assert (listed["base"]["ready"], listed["base"]["fault"]) == (True, None)
        assert broken.jobs == []
        broken.fault = None
        assert server.http.get("/readyz").status_code == 200
        assert server.score(*BODY["sequences"])[0]["priorities"] == [0, 1, 1]


def test_a_client_waits_for_a_broken_engine(serve: Any, probe: Any, pool: ThreadPoolExecutor) -> None:
    with serve({"reference": probe}) as server, Client(server.url) as client:
        probe.fault = WHY
        assert not client.ready()
        waits = [pool.submit(client.wait_until_ready, 30, models=each) for each in (None, ["reference"])]
        with pytest.raises(ConnectionFailed, match="not ready within"):
            client.wait_until_ready(0.3, models=["reference"])
        probe.fault = None
        for each in waits:
            each.result(30)


def test_everyone_in_flight_or_queued_is_told_and_scoring_resumes(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None]
) -> None:
    """Twelve requests, of which the engine holds four: it breaks, its calls end, and the queue goes with them."""
    with serve({"reference": probe}) as server:
        probe.release.clear()
        ids = [[n] * (FIRST_SLICE_TOKENS // 2) for n in range(12)]
        waiting = [pool.submit(server.post, {"sequences": [{"token_ids": each}]}) for each in ids]
        wait_until(lambda: server.service.admission.queued_tokens == 12 * len(ids[0]), "all of them")
        wait_until(lambda: len(probe.jobs) == 4, "a full engine")
        probe.fault = WHY
        probe.release.set()
        for each in waiting:
            refused(each.result(10))
        assert len(probe.jobs) == 4, "the queue never reached it"
        assert server.service.admission.queued_tokens == 0
        assert server.service.store.memory_bytes == 0
        probe.fault = None
        assert server.score({"token_ids": ids[0]})[0]["cached"] is False


def test_calls_that_a_broken_engine_never_answers_are_ended(
    serve: Any, probe: Any, pool: ThreadPoolExecutor, wait_until: Callable[..., None], quick_watch: None
) -> None:
    with serve({"reference": probe}) as server:
        probe.release.clear()
        ids = [[n] * FIRST_SLICE_TOKENS for n in range(3)]
        probe.inner = FakeEngine(max_model_len=FIRST_SLICE_TOKENS)
        waiting = [pool.submit(server.post, {"sequences": [{"token_ids": each}]}) for each in ids]
        wait_until(lambda: server.service.admission.queued_tokens == 3 * FIRST_SLICE_TOKENS, "all of them")
        wait_until(lambda: len(probe.jobs) == 2, "a full engine")
        probe.fault = WHY
        for each in waiting:
            response = each.result(10)
            assert (response.status_code, response.json()["error"]["type"]) == (503, "unavailable")
        assert probe.cancelled == 2
        assert server.service.admission.queued_tokens == 0


def test_what_an_engine_says_as_it_breaks_is_not_kept(serve: Any, probe: Any) -> None:
    """Half of a call comes through: those items have their answers, the others their error, the store has neither."""

    def spoil(job: Any, rows: Any) -> Any:
        probe.fault = WHY
        return RuntimeError("gone") if job.token_ids[0] == 9 else rows

    probe.spoil = spoil
    with serve({"reference": probe}) as server:
        good, bad = server.score({"token_ids": [1, 2, 3]}, {"token_ids": [9, 2, 3]})
        assert good["priorities"] == [0, 1, 1]
        assert bad["error"]["type"] == "engine_fault"
        assert server.service.store.memory_bytes == 0
        probe.fault = probe.spoil = None
        assert [each["cached"] for each in server.score({"token_ids": [1, 2, 3]}, {"token_ids": [9, 2, 3]})] == [
            False,
            False,
        ]
