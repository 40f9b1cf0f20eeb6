"""A replica's connections, against a server on a real socket."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from tokenpriority_service.engines.remote import replica as module
from tokenpriority_service.engines.remote.replica import Replica

IDLE = 12


class Server:
    """Answers `{}` to every POST, once `free` is set."""

    def __init__(self) -> None:
        self.free = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                await self.free.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def cancelled_after(turns: int, *, by_leaving: bool) -> None:
    """A request given up after so many turns of the loop, at a replica whose other connections have expired."""
    server = Server()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        replica = Replica(f"http://127.0.0.1:{port}", api_key=None, timeout=30, max_concurrent=IDLE)
        asked = [asyncio.create_task(replica.score("/", b"{}", tokens=1)) for _ in range(IDLE)]
        await asyncio.sleep(0.02)
        server.free.set()
        await asyncio.gather(*asked)
        await asyncio.sleep(0.03)
        late = asyncio.create_task(replica.score("/", b"{}", tokens=1))
        for _ in range(turns):
            await asyncio.sleep(0)
        if by_leaving:
            replica.leave("test")
        else:
            late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        await replica.aclose()


@pytest.mark.parametrize("by_leaving", [False, True])
def test_a_request_given_up_leaves_no_connection_open(monkeypatch: pytest.MonkeyPatch, by_leaving: bool) -> None:
    """httpx closes expired connections on the way of the next request; cut short there, it would forget the rest."""
    monkeypatch.setattr(module, "_KEEPALIVE_SECONDS", 0.02)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for turns in range(0, 24, 2):
            asyncio.run(cancelled_after(turns, by_leaving=by_leaving))
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
