"""SIGKILL. The last test of all on the remote engine, by name: it ends a server for good."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tokenpriority.errors import EngineFault, Unavailable
from tokenpriority_service.engines.remote import RemoteEngine

Open = Callable[..., RemoteEngine]
StartRelay = Callable[[int], "subprocess.Popen[bytes]"]

_RELAY = """
import asyncio, sys
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
async def serve(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pump(reader, back), pump(there, writer))
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def start_relay(free_port: int) -> Iterator[StartRelay]:
    """Starts a process that passes bytes on from `free_port`: a replica whose host can be killed and started again."""
    started: list[subprocess.Popen[bytes]] = []

    def start(upstream: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _RELAY, str(free_port), str(upstream)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def sound(results: list[Any]) -> bool:
    return all(not isinstance(rows, Exception) and bool(np.isfinite(rows[0, 1:]).all()) for rows in results)


def test_a_killed_replicas_work_is_done_by_the_other(
    kit: Any, generating: Any, open_front: Any, open_engine: Open, free_port: int, start_relay: StartRelay
) -> None:
    """And it takes part again once it is back."""
    front = open_front(generating)
    relay = start_relay(front.upstream)
    engine = open_engine(f"http://127.0.0.1:{free_port}", front, max_concurrent=8)

    async def kill() -> list[Any]:
        task = asyncio.create_task(engine.score(kit.jobs(*[100] * 64)))
        await asyncio.to_thread(kit.until, lambda: len(front.asked) >= 8)
        relay.kill()
        return await task

    assert sound(asyncio.run(kill()))
    assert engine.fault is None
    asked = len(front.asked)
    assert sound(kit.score(engine, kit.jobs(*[5] * 20)))
    assert len(front.asked) == asked + 20, "only the one that is left is asked"
    again = start_relay(front.upstream)
    front.behave = lambda exchange: None
    kit.until(lambda: sound(kit.score(engine, kit.jobs(5))))
    assert again.poll() is None


def test_a_killed_vllm_is_a_fault_at_once(kit: Any, pooling: Any, open_engine: Open) -> None:
    engine = open_engine(pooling, vocab_size=kit.vocab_size, timeout=600.0)

    assert sound(kit.score(engine, kit.jobs(5)))

    async def kill() -> list[Any]:
        os.killpg(pooling.process.pid, signal.SIGSTOP)  # so that nothing is answered before it is killed
        task = asyncio.create_task(engine.score(kit.jobs(*[120] * 64)))
        await asyncio.sleep(0.2)
        pooling.kill()
        return await task

    results = asyncio.run(kill())
    assert len(results) == 64
    assert all(isinstance(error, Unavailable | EngineFault) for error in results)
    kit.until(lambda: engine.fault is not None)
    (refused,) = kit.score(engine, kit.jobs(5))
    assert isinstance(refused, Unavailable)
    assert f"no replica can be used: {pooling.url}: " in refused.message
    with socket.socket() as nobody:
        assert nobody.connect_ex(("127.0.0.1", pooling.port)) != 0
