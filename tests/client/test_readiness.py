"""Waiting for a server, or for some of its models, that load while others fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tokenpriority import AsyncClient, Client, ConnectionFailed, NotFound, Unauthorized, Unavailable, wire
from tokenpriority.cli import waiting
from tokenpriority.cli.app import app


class Loading:
    """Makes the server list `reference`, ready after `polls` listings, and `other`, which has failed for ever."""

    def __init__(self, server: Any, polls: int) -> None:
        self.asked: list[str] = []
        self.polls = polls
        self._server, self._answer = server, server.answer
        server.answer = self.answer

    async def answer(self, path: str, body: bytes) -> Any:
        self.asked.append(path)
        if path == "/readyz":
            return 503, {}, b""
        if path != "/v1/models":
            return await self._answer(path, body)
        self.polls -= 1
        if self.polls == 1:
            return 503, {}, b""  # as behind a gateway that starts later
        [reference] = self._server._described(path)["models"]
        other = {**reference, "name": "other", "ready": False, "error": "no such folder"}
        models = [other, {**reference, "ready": self.polls <= 0}]
        return 200, {"content-type": wire.MSGPACK}, wire.encode({"models": models})


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, retries=0) as connected:
        yield connected


def test_only_the_named_models_matter(server: Any, client: Client) -> None:
    loading = Loading(server, polls=3)
    client.wait_until_ready(60, models=iter(["reference"]))
    assert loading.asked == ["/v1/models"] * 3
    with pytest.raises(Unavailable, match="model 'other': no such folder"):
        client.wait_until_ready(60)


def test_the_async_client_waits_for_models_too(server: Any) -> None:
    async def main() -> None:
        async with AsyncClient(server.url) as client:
            await client.wait_until_ready(60, models=["reference"])

    loading = Loading(server, polls=2)
    asyncio.run(main())
    assert loading.polls == 0


def test_a_named_model_that_failed_or_is_not_there_ends_the_wait(server: Any, client: Client) -> None:
    Loading(server, polls=0)
    with pytest.raises(Unavailable, match="model 'other': no such folder"):
        client.wait_until_ready(600, models=["reference", "other"])
    with pytest.raises(NotFound, match="no model 'nobody'; the server has other, reference"):
        client.wait_until_ready(600, models=["nobody"])
    with pytest.raises(TypeError, match="models: a list of names is expected, got the str 'reference'"):
        client.wait_until_ready(600, models="reference")


def test_a_refused_key_ends_the_wait(server: Any, client: Client) -> None:
    server.answer = lambda path, body: server.refusing(Unauthorized("no such key"))(server, None)
    with pytest.raises(Unauthorized, match="no such key"):
        client.wait_until_ready(600, models=["reference"])


def test_a_model_that_is_still_loading_in_the_end(server: Any, client: Client) -> None:
    Loading(server, polls=10**6)
    with pytest.raises(ConnectionFailed, match=r"^reference at http\S+ was not ready within 0\.1 seconds"):
        client.wait_until_ready(0.1, models=["reference"])


def test_a_server_that_is_not_there_is_waited_for() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(ConnectionFailed, match="was not ready"):
        client.wait_until_ready(0.1, models=["reference"])


def scored(server: Any, folder: Path, *arguments: str) -> Any:
    source = folder / "in.jsonl"
    source.write_text('{"token_ids": [1, 2]}\n')
    command = ["score", str(source), "--out", str(folder / "out.parquet"), "--url", server.url, *arguments]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, command)


def test_the_command_waits_for_a_server_that_is_loading(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "QUIET_SECONDS", 0.1)
    loading = Loading(server, polls=5)
    done = scored(server, tmp_path)
    assert done.exit_code == 0, done.output
    assert loading.polls <= 0, "nothing was scored before the model was ready"
    assert done.stderr.startswith(f"waiting for reference at {server.url}\n")
    assert done.stdout.endswith("out.parquet: 1 rows, 0 failed\n")


def test_the_command_says_nothing_of_an_unrelated_model_that_failed(server: Any, tmp_path: Path) -> None:
    Loading(server, polls=0)
    done = scored(server, tmp_path)
    assert done.exit_code == 0, done.output
    assert "waiting" not in done.stderr


def test_the_command_fails_at_once_where_its_model_failed(server: Any, tmp_path: Path) -> None:
    Loading(server, polls=0)
    done = scored(server, tmp_path, "--model", "other")
    assert (done.exit_code, done.stderr) == (1, "Unavailable: model 'other': no such folder\n")
