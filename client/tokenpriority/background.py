"""One daemon thread with one event loop, behind the synchronous client.

Knows threads, loops, forks and the interpreter's end. Knows nothing of requests. The thread starts at first use; a
forked child, in which no thread survives, starts its own; nothing here keeps its owner alive.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

CLOSED = "the client is closed"


class Background:
    """An event loop in a thread of its own; `at_end` is awaited in it before it ends."""

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        self._at_end = at_end
        self._closed = False
        self.forget()
        _LIVE.add(self)

    def forget(self) -> None:
        """Start as new, in a forked child: the lock may have been held, and loop and thread are the parent's."""
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine in the loop. Raises RuntimeError after `close`."""
        with self._lock:
            if self._closed:
                coroutine.close()
                raise RuntimeError(CLOSED)
            if self._running is None:
                self._running = _Running(self._at_end)
                weakref.finalize(self, self._running.stop).atexit = False
            return self._running.begin(coroutine)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and wait for its result; an interrupt cancels it."""
        future = self.submit(coroutine)
        try:
            return wait(future)
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what runs and end the thread; idempotent."""
        with self._lock:
            self._closed = True
            running, self._running = self._running, None
        if running is not None:
            running.stop()
            running.join()


def wait(future: Future[T]) -> T:
    """The result of a future of `submit`. Raises RuntimeError if the client was closed meanwhile."""
    try:
        return future.result()
    except CancelledError:
        raise RuntimeError(CLOSED) from None


class _Running:
    """The running thread; knows nothing of the Background that owns it, so that it can be collected."""

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        self._pid = os.getpid()
        self._at_end = at_end
        self._begun: set[Future[Any]] = set()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="tokenpriority", daemon=True)
        _RUNNING.add(self)
        self._thread.start()
        self._ready.result()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine in the loop, from any thread."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._begun.add(future)
        future.add_done_callback(self._begun.discard)
        return future

    def stop(self) -> None:
        """Ask the loop to end; returns at once, from any thread."""
        if self._pid == os.getpid():
            with suppress(RuntimeError):  # the loop is closed: it has ended already
                self._loop.call_soon_threadsafe(self._ended.set)

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # no loop could be made; whoever started the thread waits to hear of it
        finally:
            _RUNNING.discard(self)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._ready.set_result(None)
        await self._ended.wait()
        # What was begun here is cancelled, and cancels what it began in turn. Cancelling every task of the loop instead
        # would reach into anyio's groups, whose tasks then complain that they were never awaited (anyio 4.16).
        for future in list(self._begun):
            future.cancel()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks)
        await self._at_end()


_RUNNING: set[_Running] = set()
"""Threads of this process, also those of owners already collected: the interpreter's end waits for each."""
_LIVE: weakref.WeakSet[Background] = weakref.WeakSet()
_INHERITED: list[_Running] = []
"""Loops of the parent process, kept for ever in a forked child: collecting one would close what the parent uses."""


def _after_fork() -> None:
    _INHERITED.extend(_RUNNING)
    _RUNNING.clear()
    for background in list(_LIVE):
        background.forget()


def _at_exit() -> None:
    for running in list(_RUNNING):
        running.stop()
        running.join()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
