"""A process that keeps evidence without end, until it is killed.

It tells over a pipe what is committed: the number of each lot, once the store's writer is done with it. A lot is what
one call of an engine gives: sequences that are written in one transaction.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from stores import Watch, ids, truth, wanted
from tokenpriority_service.database.database import Database
from tokenpriority_service.store import LayeredStore, Wanted

# A server with everything imported forks the writers: each is there in milliseconds, and has no thread but its own.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pytest", "tokenpriority_service.store", "psycopg", "store_writer"])


def lot(number: int) -> list[Wanted]:
    """What is kept together."""
    return [wanted(ids(30 + (number * 7 + each * 131) % 700, 10 * number + each)) for each in range(6)]


def start(url: str, first: int) -> tuple[ForkServerProcess, Connection]:
    """A writer of lots `first`, `first + 1`, ...; and where it tells those committed."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_write, args=(url, first, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def told(pipe: Connection) -> list[int]:
    """What was told until the process ended."""
    numbers: list[int] = []
    while True:
        try:
            numbers.append(pipe.recv())
        except EOFError:
            return numbers


def _write(url: str, first: int, pipe: Connection) -> None:
    asyncio.run(_keep_on(url, first, pipe))


async def _keep_on(url: str, number: int, pipe: Connection) -> None:
    watch = Watch()
    store: Any = LayeredStore(Database(url), memory_bytes=1 << 20, max_bytes=1 << 30, watch=watch)
    await store.start()
    while True:
        await store.keep([(wish, truth(wish)) for wish in lot(number)])
        while store._writer._waiting:  # noqa: ASYNC110  # the store has no event for it: nobody else needs to know
            await asyncio.sleep(0)
        if not watch.failures:
            pipe.send(number)
        watch.failures.clear()
        number += 1
