"""A server's life: models that load, fail or take long; the real command; SIGTERM; mistakes at start."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from tokenpriority_service.command import serve as serve_command
from tokenpriority_service.configuration.settings import FakeModel, Settings, TorchModel
from tokenpriority_service.engines.fake import FakeEngine

FAKE = FakeModel(model="fake")
BODY = {"sequences": [{"token_ids": [1, 2, 3]}]}
SERVE = (
    "import typer; from tokenpriority_service.command import serve; app = typer.Typer(); app.command()(serve); app()"
)


def test_loading_then_ready(serve: Any, wait_until: Callable[..., None]) -> None:
    gate = threading.Event()

    def load(kind: str, **settings: Any) -> Any:
        gate.wait(30)
        return FakeEngine(model=settings["model"])

    with serve(settings=Settings(models={"reference": FAKE}), ready=False, load=load) as server:
        assert server.http.get("/healthz").status_code == 200
        for response in (server.http.get("/readyz"), server.post(BODY)):
            assert response.status_code == 503
            assert response.json()["error"]["type"] == "unavailable"
            assert "loading" in response.json()["error"]["message"]
            assert int(response.headers["retry-after"]) >= 1
        assert server.post({**BODY, "model": "other"}).status_code == 404
        listed = server.http.get("/v1/models").json()["models"][0]
        assert (listed["name"], listed["ready"], listed["error"]) == ("reference", False, None)
        gate.set()
        wait_until(lambda: server.http.get("/readyz").status_code == 200, "ready")
        assert server.http.get("/v1/models").json()["models"][0]["ready"]
        assert server.post(BODY).status_code == 200


def test_a_given_engine_is_listed_before_it_is_ready(serve: Any, wait_until: Callable[..., None]) -> None:
    gate = threading.Event()

    class SlowTokenizer(FakeEngine):
        @property
        def tokenizer(self) -> Any:
            gate.wait(30)
            return super().tokenizer

    with serve({"reference": SlowTokenizer()}, ready=False) as server:
        listed = server.http.get("/v1/models").raise_for_status().json()["models"][0]
        assert (listed["ready"], listed["engine"], listed["error"]) == (False, "fake", None)
        gate.set()
        wait_until(lambda: server.http.get("/v1/models").json()["models"][0]["ready"], "ready")


def test_a_model_that_fails_to_load_takes_no_other_down(serve: Any, tmp_path: Path) -> None:
    """The real torch engine on a folder that holds no model."""
    broken = TorchModel(model=str(tmp_path))
    settings = Settings(models={"broken": broken, "reference": FAKE})
    with serve(settings=settings, ready=False) as server:
        deadline = time.monotonic() + 60
        while "loading" in server.service.models.unready.values():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert server.post(BODY).status_code == 200
        listed = {model["name"]: model for model in server.http.get("/v1/models").json()["models"]}
        assert listed["reference"]["ready"]
        assert listed["reference"]["error"] is None
        assert not listed["broken"]["ready"]
        assert listed["broken"]["error"]
        refused = server.post({**BODY, "model": "broken"})
        assert refused.status_code == 503
        assert listed["broken"]["error"] in refused.json()["error"]["message"]
        unready = server.http.get("/readyz")
        assert unready.status_code == 503
        assert "'broken'" in unready.json()["error"]["message"]
        assert "'reference'" not in unready.json()["error"]["message"]


def test_a_server_stops_while_a_model_is_loading(serve: Any) -> None:
    gate = threading.Event()

    def load(kind: str, **settings: Any) -> Any:
        gate.wait(30)
        return FakeEngine()

    with serve(settings=Settings(models={"reference": FAKE}), ready=False, load=load) as server:
        assert server.http.get("/healthz").status_code == 200
    gate.set()


@contextlib.contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real command in a process of its own, and what it says at start."""
    child = subprocess.Popen(
        [sys.executable, "-c", SERVE, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert child.stdout is not None
        said = [child.stdout.readline()]
        while said[-1] and not said[-1].startswith("  keys"):
            said.append(child.stdout.readline())
        yield child, "".join(said)
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.02)
    raise AssertionError("never ready")


def test_the_command_serves_and_stops_on_sigterm(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('[server]\nport = 0\n[models.reference]\nmodel = "made up"\nengine = "fake"\n')
    with process("--config", str(config)) as (child, said):
        assert "model reference: made up (fake)" in said
        assert "so none is asked for" in said
        assert "database: sqlite://" in said
        url = re.findall(r"http://\S+", said)[0]
        assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
        ready(url)
        answer = httpx.post(f"{url}/v1/priorities", json={"sequences": [{"text": "import os"}]}).json()
        assert len(answer["results"][0]["priorities"]) == len(answer["results"][0]["token_ids"])
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=30)
        assert child.returncode == 0
        lines = [json.loads(line) for line in err.splitlines()]
        assert any(line.get("route") == "/v1/priorities" and line["status"] == 200 for line in lines)
        assert "Traceback" not in err


def test_accepted_requests_finish_and_new_ones_are_refused_while_draining(
    serve: Any, probe: Any, wait_until: Callable[..., None]
) -> None:
    with serve({"reference": probe}) as server, httpx.Client(base_url=server.url, timeout=60) as other:
        probe.release.clear()
        answers: list[Any] = []
        waiter = threading.Thread(target=lambda: answers.append(server.post(BODY)))
        waiter.start()
        wait_until(lambda: bool(probe.jobs), "the job in the engine")
        server.server.handle_exit(signal.SIGTERM, None)
        refused = other.post("/v1/priorities", json=BODY)
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "unavailable"
        assert "draining" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert other.get("/readyz").status_code == 503
        assert other.get("/healthz").status_code == 200
        assert "tokenpriority_draining 1.0" in other.get("/metrics").text
        probe.release.set()
        waiter.join(30)
        assert answers[0].status_code == 200
        wait_until(lambda: server.server.should_exit, "the end")


def test_what_is_not_done_by_the_deadline_is_cancelled(serve: Any, probe: Any, wait_until: Callable[..., None]) -> None:
    settings = Settings.model_validate({"server": {"drain_seconds": 0.2}})
    with serve({"reference": probe}, settings) as server:
        probe.release.clear()
        outcome: list[Any] = []

        def ask() -> None:
            try:
                outcome.append(server.post(BODY).status_code)
            except httpx.TransportError as error:
                outcome.append(error)

        waiter = threading.Thread(target=ask)
        waiter.start()
        wait_until(lambda: bool(probe.jobs), "the job in the engine")
        server.server.handle_exit(signal.SIGTERM, None)
        waiter.join(30)
        assert len(outcome) == 1
        assert outcome[0] != 200
        assert probe.cancelled == 1


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that is in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield str(listener.getsockname()[1])


def test_mistakes_at_start_are_one_line(tmp_path: Path, taken: str) -> None:
    app = typer.Typer()
    app.command()(serve_command)
    typo = tmp_path / "typo.toml"
    typo.write_text("[server]\nprot = 1")
    cases = [
        ((), 2, "no models"),
        (("--config", str(tmp_path / "none.toml")), 2, "no such file"),
        (("--config", str(typo)), 2, "server.prot: unknown key"),
        (("--model", "/no/such/folder"), 2, "models.reference.model: no such folder"),
        (("--model", "x", "--engine", "tpu"), 2, "--engine: must be one of torch, vllm, remote, fake"),
        (("--engine", "fake"), 2, "--engine: goes with --model"),
        (("--model", "x", "--engine", "fake", "--host", "0.0.0.0"), 2, "server.host"),
        (("--model", "x", "--engine", "fake", "--port", taken), 1, f"port {taken}"),
    ]
    for options, status, words in cases:
        done = CliRunner().invoke(app, options)
        assert done.exit_code == status, (options, done.output)
        assert words in done.stderr, (options, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stdout == ""


def test_a_mistake_in_a_process_of_its_own_has_no_traceback(taken: str) -> None:
    options = ["--model", "x", "--engine", "fake", "--port", taken]
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1 port {taken}: Address already in use" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = SERVE.replace("app()", "app(standalone_mode=False); import sys; print('torch' in sys.modules)")
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--config" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
