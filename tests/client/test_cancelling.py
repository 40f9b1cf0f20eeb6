"""A call that is given up leaves no connection open; against a server on a real socket."""

from __future__ import annotations

import asyncio
import gc
import warnings

import anyio
import httpx
import pytest

from tokenpriority.cancelling import uncut
from tokenpriority.connection import MAX_REQUESTS, Connection, Settings


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """204 to every GET."""
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.01)
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def cancelled_after(turns: int) -> None:
    """A request cancelled after so many turns of the loop, when the pool's connections have expired."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = Connection(Settings(f"http://127.0.0.1:{port}"))
        limits = httpx.Limits(max_connections=MAX_REQUESTS, keepalive_expiry=0.01)
        connection._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits)
        await asyncio.gather(*(connection.get("/") for _ in range(MAX_REQUESTS)))
        await asyncio.sleep(0.02)
        late = asyncio.create_task(connection.get("/"))
        for _ in range(turns):
            await asyncio.sleep(0)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert late.cancelled()
        await connection.aclose()


def test_a_cancelled_call_leaves_no_connection_open() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for turns in range(0, 20, 2):
            asyncio.run(cancelled_after(turns))
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


async def cancelled_again() -> list[str]:
    """A call whose work takes its time to end is cancelled twice more meanwhile."""
    events: list[str] = []
    end = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            with anyio.CancelScope(shield=True):
                await end.wait()
            events.append("work")

    async def call() -> None:
        try:
            await uncut(work())
        finally:
            events.append("caller")

    caller = asyncio.create_task(call())
    for _ in range(3):
        await asyncio.sleep(0.01)
        caller.cancel()
    await asyncio.sleep(0.01)
    assert events == []
    end.set()
    await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
    return events


def test_a_caller_cancelled_again_still_ends_after_its_work() -> None:
    assert asyncio.run(cancelled_again()) == ["work", "caller"]


def test_results_and_errors_pass_through() -> None:
    async def result() -> int:
        return 3

    async def error() -> int:
        raise KeyError("x")

    assert asyncio.run(uncut(result())) == 3
    with pytest.raises(KeyError, match="x"):
        asyncio.run(uncut(error()))
