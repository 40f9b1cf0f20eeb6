"""A server of the contract that misbehaves (`server`), and the real service (`service`), each on a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import uvicorn

from contract_server import ContractServer
from tokenpriority import Client
from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import Settings
from tokenpriority_service.engines.engine import Engine, EngineInfo, Job, Rows
from tokenpriority_service.engines.fake import FakeEngine


@contextmanager
def in_thread(main: Callable[[asyncio.Event], Awaitable[None]]) -> Iterator[None]:
    """Run a server in the loop of a thread of its own until the block ends."""
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main(ended))  # type: ignore[arg-type]

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()


@pytest.fixture
def server() -> Iterator[ContractServer]:
    contract = ContractServer()
    listening = socket.create_server(("127.0.0.1", 0))
    contract.url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    async def main(ended: asyncio.Event) -> None:
        serving = await asyncio.start_server(contract.connection, sock=listening)
        async with serving:
            await ended.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with in_thread(main):
        yield contract


class Relabelled(FakeEngine):
    """The fake engine speaking of other ids: another model of the same vocabulary, for the base."""

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, model="base", fingerprint="relabelled")

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        return await super().score([replace(job, token_ids=(job.token_ids + 1) % 512) for job in jobs])


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """The URL of the real service with two fake engines: models `reference` and `base`, and text by bytes."""
    engines: dict[str, Engine] = {"reference": FakeEngine(), "base": Relabelled()}
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(Settings(), engines=engines), log_config=None, ws="none")

    async def main(ended: asyncio.Event) -> None:
        uvicorn_server = uvicorn.Server(config)
        serving = asyncio.create_task(uvicorn_server.serve(sockets=[listening]))
        await ended.wait()
        uvicorn_server.should_exit = True
        await serving

    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with in_thread(main), Client(url) as client:
        while not client.ready():
            time.sleep(0.02)
        yield url


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Every thread a test starts through the client has ended when the test has."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("tokenpriority")]
    assert not left
