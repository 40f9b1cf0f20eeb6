"""Which models a run waits for, against a real server of which one model is broken, and one whose model is loading."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from tokenpriority import Client
from tokenpriority.errors import Unavailable
from tokenpriority.schema import ModelInfo, ModelList
from tokenpriority_trainer import preflight
from tokenpriority_trainer.config import PrioritiesSection
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.preflight import check_server, wait_for_models


def test_a_broken_model_that_the_run_does_not_use_is_no_hindrance(half_server: str) -> None:
    found = wait_for_models(PrioritiesSection(url=half_server), ["reference"])
    assert list(found) == ["reference"]
    assert found["reference"].ready


def test_the_whole_check_passes_beside_a_broken_model(half_server: str, tokenizer: Any) -> None:
    with closing(Client(half_server)) as client:
        found = check_server(client, PrioritiesSection(url=half_server), tokenizer, 64)
    assert set(found) == {"reference"}


@pytest.mark.parametrize("names", [["broken"], ["reference", "broken"]])
def test_a_broken_model_that_the_run_uses_is_refused(half_server: str, names: list[str]) -> None:
    with pytest.raises(Unavailable, match="priorities: the server's model 'broken' failed to load: ") as refused:
        wait_for_models(PrioritiesSection(url=half_server), names)
    assert "\n" not in str(refused.value)


def test_a_model_that_is_not_listed_is_refused(half_server: str) -> None:
    with pytest.raises(ConfigError, match="the server has no model 'base'; it has broken, reference"):
        wait_for_models(PrioritiesSection(url=half_server), ["reference", "base"])


@pytest.fixture
def loading() -> Iterator[tuple[str, list[bool]]]:
    """A server that answers with a listing alone, and whether its model is ready by question; the last one stays."""
    states: list[bool] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = states.pop(0) if len(states) > 1 else states[0]
            facts: dict[str, Any] = {"engine": "torch", "model": "m", "dtype": "float32", "max_model_len": 8}
            facts |= {"vocab_size": 9, "fingerprint": "f", "signals": [], "tokenizer": ""}
            body = msgspec.json.encode(ModelList(models=[ModelInfo(name="reference", ready=ready, **facts)]))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class names it
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", states
        server.shutdown()
        thread.join()


def test_a_model_that_is_loading_is_waited_for(
    loading: tuple[str, list[bool]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "POLL_SECONDS", 0.01)
    url, states = loading
    states += [False, False, True]
    assert wait_for_models(PrioritiesSection(url=url), ["reference"])["reference"].ready
    assert states == [True]
    assert capsys.readouterr().err == f"waiting for {url} to load 'reference'\n"


def test_waiting_ends(loading: tuple[str, list[bool]]) -> None:
    url, states = loading
    states += [False]
    with pytest.raises(Unavailable, match="the server is still loading 'reference' after 0 seconds"):
        wait_for_models(PrioritiesSection(url=url, patience=0.0), ["reference"])
