"""Scores fetched ahead of the batches that need them.

Knows a loader, the order of its batches, and how many may be ahead. Knows nothing of requests: it is given a function
that begins one. The loader is read in a thread of its own, not in the thread of the event loop, so that a slow loader
never holds up an answer and may itself use the client.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

from tokenpriority.background import wait
from tokenpriority.scores import Scores
from tokenpriority.window import discard

B = TypeVar("B")

JOIN_SECONDS = 5.0
"""How long `close` waits for a loader that is in the middle of a batch."""


class Prefetch(Generic[B]):
    """An iterator of `(batch, list[Scores])` in the loader's order, with up to `depth` batches ready or under way.

    An error of the loader, of `sequences` or of the server is raised by `next` in the place of the batch it belongs
    to; nothing is skipped, and the iteration is over. Stopping early, `close`, a `with` block, garbage collection and
    the interpreter's end all stop the thread; if the loader is just making a batch, it stops after that.
    """

    def __init__(self, loader: Iterable[B], begin: Callable[[B], Future[list[Scores]]], depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth: must be at least 1, got {depth}")
        self.wait_seconds = 0.0
        """Time spent waiting in `next`, in seconds: what the consumer lost to loading and scoring."""
        self.batches = 0
        """Batches handed out."""
        self._ended = False
        self._shelf: _Shelf[B] = _Shelf(depth)
        self._thread = threading.Thread(
            target=_fill, args=(self._shelf, loader, begin), name="tokenpriority-prefetch", daemon=True
        )
        weakref.finalize(self, self._shelf.stop).atexit = False
        _RUNNING[self._thread] = self._shelf
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[B, list[Scores]]:
        self._shelf.check_process()
        if self._ended:
            raise StopIteration
        began = time.perf_counter()
        try:
            taken = self._shelf.take()
            if taken is None:
                raise StopIteration
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - began
        self.batches += 1
        return taken

    def close(self) -> None:
        """Stop: cancel what is under way and end the thread; idempotent."""
        self._ended = True
        self._shelf.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Shelf(Generic[B]):
    """What lies between the thread and the consumer; neither knows the other, so that the consumer can be collected."""

    def __init__(self, depth: int) -> None:
        self._pid = os.getpid()
        self._room = threading.Semaphore(depth)
        self._placed: queue.SimpleQueue[tuple[B, Future[list[Scores]]] | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def wait_for_room(self) -> bool:
        """Return once one more batch may be begun; False if the consumer has stopped."""
        self._room.acquire()
        return not self._stopped.is_set()

    def put(self, placed: tuple[B, Future[list[Scores]]] | BaseException | None) -> None:
        """Place the next batch, the error met in its stead, or None for the end."""
        self._placed.put(placed)
        if self._stopped.is_set():
            self._clear()

    def take(self) -> tuple[B, list[Scores]] | None:
        """The next batch with its scores, None at the end, making room for one more; raises the error in its place."""
        placed = self._placed.get()
        if placed is None:
            return None
        if isinstance(placed, BaseException):
            raise placed
        batch, future = placed
        scores = wait(future)
        self._room.release()
        return batch, scores

    def stop(self) -> None:
        """Begin nothing more and cancel what is under way; from any thread."""
        if self._pid != os.getpid():
            return  # a forked child: the thread and what is under way are the parent's
        self._stopped.set()
        self._room.release()
        self._clear()

    def check_process(self) -> None:
        """Raises RuntimeError in a forked child, where there is no thread and nothing would ever be placed."""
        if self._pid != os.getpid():
            raise RuntimeError("this Prefetch belongs to the parent process; call client.prefetch after the fork")

    def _clear(self) -> None:
        with suppress(queue.Empty):
            while True:
                placed = self._placed.get_nowait()
                if isinstance(placed, tuple):
                    discard(placed[1])


def _fill(shelf: _Shelf[B], loader: Iterable[B], begin: Callable[[B], Future[list[Scores]]]) -> None:
    """Read the loader until its end, an error, or the consumer's stop."""
    try:
        iterator = iter(loader)
        while shelf.wait_for_room():
            try:
                batch = next(iterator)
            except StopIteration:
                break
            shelf.put((batch, begin(batch)))
        shelf.put(None)
    except BaseException as error:  # whatever it is, the consumer waits for it
        shelf.put(error)
    finally:
        _RUNNING.pop(threading.current_thread(), None)


_RUNNING: dict[threading.Thread, _Shelf[Any]] = {}
"""Threads of this process, also those of consumers already collected: the interpreter's end waits for each."""


def _at_exit() -> None:
    for thread, shelf in list(_RUNNING.items()):
        shelf.stop()
        thread.join(JOIN_SECONDS)


# After the import of `background`, so that it runs before the loops end.
atexit.register(_at_exit)
