"""Several models on one engine: adapters are models of the server by their own names."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import FakeModel, Settings, VllmModel
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.scheduling.window import FIRST_SLICE_TOKENS
from tokenpriority_service.teams.caller import ANYONE

BODY = {"sequences": [{"token_ids": list(range(20))}]}
HOST = VllmModel(model="weights", max_model_len=64, adapters={"tuned": "lora/tuned", "other": "lora/other"})


@pytest.fixture
def host(make_probe: Callable[..., Any]) -> Any:
    """An engine with two adapters."""
    names = ("tuned", "other")
    return make_probe(FakeEngine(), siblings={name: make_probe(FakeEngine(model=name)) for name in names})


def listed(server: Any) -> dict[str, Any]:
    return {each["name"]: each for each in server.http.get("/v1/models").json()["models"]}


def test_each_adapter_is_a_model_of_its_own(serve: Any, host: Any) -> None:
    with serve({"reference": host}) as server:
        models = listed(server)
        assert list(models) == ["reference", "tuned", "other"]
        assert all(each["ready"] for each in models.values())
        assert len({each["fingerprint"] for each in models.values()}) == 3
        assert [models[name]["model"] for name in ("tuned", "other")] == ["tuned", "other"]
        logprobs = [server.post({**BODY, "model": name}).json()["results"][0]["logprobs"] for name in models]
        assert logprobs[0] != logprobs[1] != logprobs[2]
        assert [len(each.jobs) for each in (host, *host.siblings.values())] == [1, 1, 1]
        # An adapter may be the base of a method.
        cleaning = {**BODY, "method": {"name": "token_cleaning", "params": {"base": "tuned"}}}
        assert server.post(cleaning).json()["base"]["name"] == "tuned"


def test_they_wait_in_the_queue_of_their_host(serve: Any, host: Any, wait_until: Callable[..., None]) -> None:
    with serve({"reference": host}) as server, ThreadPoolExecutor(4) as pool:
        host.release.clear()
        full = [{"sequences": [{"token_ids": [n] * FIRST_SLICE_TOKENS}]} for n in range(2)]
        answers = [pool.submit(server.post, body) for body in full]
        wait_until(lambda: len(host.jobs) == 2, "a full engine")
        answers.append(pool.submit(server.post, {**BODY, "model": "tuned"}))
        wait_until(lambda: server.service.admission.queued_tokens == 2 * FIRST_SLICE_TOKENS + 20, "the third request")
        queued = {name: dict(model.dispatcher.queued) for name, model in server.service.models.ready.items()}
        assert queued == {"reference": {}, "tuned": {(ANYONE, "interactive"): 20}, "other": {}}
        assert host.siblings["tuned"].jobs == []
        host.release.set()
        assert [each.result().status_code for each in answers] == [200, 200, 200]


def test_their_names_are_known_while_the_host_loads(serve: Any, host: Any, wait_until: Callable[..., None]) -> None:
    gate = threading.Event()
    loaded: list[dict[str, Any]] = []

    def load(kind: str, **settings: Any) -> Any:
        loaded.append(settings)
        gate.wait(30)
        return host

    with serve(settings=Settings(models={"reference": HOST}), ready=False, load=load) as server:
        models = listed(server)
        assert [(name, each["model"], each["ready"], each["error"]) for name, each in models.items()] == [
            ("reference", "weights", False, None),
            ("tuned", "lora/tuned", False, None),
            ("other", "lora/other", False, None),
        ]
        loading, unknown = (server.post({**BODY, "model": name}) for name in ("tuned", "nobody"))
        assert (loading.status_code, unknown.status_code) == (503, 404)
        assert "tuned" in unknown.json()["error"]["message"]
        assert "'other': loading" in server.http.get("/readyz").json()["error"]["message"]
        gate.set()
        wait_until(lambda: server.http.get("/readyz").status_code == 200, "ready")
        assert server.post({**BODY, "model": "tuned"}).status_code == 200
        assert loaded[0]["adapters"] == {"tuned": "lora/tuned", "other": "lora/other"}


def test_they_fail_with_their_host(serve: Any, wait_until: Callable[..., None]) -> None:
    def load(kind: str, **settings: Any) -> Any:
        if kind == "vllm":
            raise ValueError("model: no such weights")
        return FakeEngine()

    models = {"reference": HOST, "alone": FakeModel(model="x")}
    with serve(settings=Settings(models=models), ready=False, load=load) as server:
        wait_until(lambda: "loading" not in server.service.models.unready.values(), "an end to loading")
        assert {name: each["error"] for name, each in listed(server).items()} == {
            "reference": "model: no such weights",
            "tuned": "model: no such weights",
            "other": "model: no such weights",
            "alone": None,
        }
        assert "no such weights" in server.post({**BODY, "model": "tuned"}).json()["error"]["message"]
        assert server.post({**BODY, "model": "alone"}).status_code == 200


def test_an_engine_without_the_adapters_it_was_to_load_is_refused(
    serve: Any, make_probe: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    closed = threading.Event()

    class Closing(FakeEngine):
        async def close(self) -> None:
            closed.set()
            await super().close()

    settings = Settings(models={"reference": HOST})
    with serve(settings=settings, ready=False, load=lambda kind, **_: Closing()) as server:
        wait_until(lambda: "loading" not in server.service.models.unready.values(), "an end to loading")
        assert "expected ['other', 'tuned'], the engine has []" in listed(server)["tuned"]["error"]
        assert closed.wait(10), "its memory is free again"


def test_a_name_taken_twice_is_refused_at_start(host: Any) -> None:
    with pytest.raises(ValueError, match=r"models\.reference\.adapters\.tuned: another model has this name already"):
        create_app(Settings(), {"reference": host, "tuned": FakeEngine()})
    with pytest.raises(ValueError, match=r"adapters\.tuned: another model has this name"):
        create_app(Settings(models={"tuned": FakeModel(model="x")}), {"reference": host})
    with pytest.raises(ValueError, match=r"models\.tuned\.adapters\.tuned: another model"):
        create_app(Settings(), {"tuned": host})


def test_a_broken_host_and_its_adapters_are_told_apart(serve: Any, host: Any) -> None:
    with serve({"reference": host}) as server:
        host.siblings["tuned"].fault = "gone"
        assert [name for name, each in listed(server).items() if not each["ready"]] == ["tuned"]
        assert server.post({**BODY, "model": "tuned"}).status_code == 503
        assert server.post(BODY).status_code == 200
