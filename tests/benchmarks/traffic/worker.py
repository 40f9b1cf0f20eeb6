"""A load in a process of its own, so that it takes no turns from the server, from the script or from another load."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs `load(stop, *args)`, a function of a module, at once; it ends by itself or soon after `stop` is set.

    As a context manager it leaves no process behind, whatever happens.
    """

    def __init__(self, load: Callable[..., Awaitable[T]], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(load, args, theirs), daemon=True)
        self._process.start()
        theirs.close()  # its end is then the only one, and is closed when it dies

    def stop(self) -> T:
        """Tell the load to end; what it returns."""
        with contextlib.suppress(BrokenPipeError):  # it failed: `result` says how
            self._pipe.send(None)
        return self.result()

    def result(self) -> T:
        """What the load returns, once it does. Raises RuntimeError with what it met."""
        try:
            result, error = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"a load died, exit status {self._process.exitcode}") from None
        if error is not None:
            raise RuntimeError(f"a load failed:\n{error}")
        found: T = result
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def _run(load: Callable[..., Awaitable[Any]], args: tuple[Any, ...], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the script then ends its workers
    answer: tuple[Any, str | None]
    try:
        answer = asyncio.run(_stoppable(load, args, pipe)), None
    except Exception:
        answer = None, traceback.format_exc()
    pipe.send(answer)


async def _stoppable(load: Callable[..., Awaitable[T]], args: tuple[Any, ...], pipe: Connection) -> T:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told() -> None:
        loop.remove_reader(pipe.fileno())
        try:
            pipe.recv()
        except EOFError:  # the script is gone
            os._exit(1)
        stop.set()

    loop.add_reader(pipe.fileno(), told)
    return await load(stop, *args)
