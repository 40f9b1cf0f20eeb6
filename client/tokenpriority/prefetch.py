"""Scores fetched ahead of the batches that need them.

Knows a loader, the order of its batches, and how many were handed out. Knows nothing of requests: it is given a
function that begins one; `depth.py` says how many may be ahead. The loader is read in a thread of its own, not in the
thread of the event loop, so that a slow loader never holds up an answer and may itself use the client.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

from tokenpriority.background import wait
from tokenpriority.depth import Depth, Wanted
from tokenpriority.scores import Scores
from tokenpriority.window import discard

B = TypeVar("B")

JOIN_SECONDS = 5.0
"""How long `close` waits for a loader that is in the middle of a batch."""


class Prefetch(Generic[B]):
    """An iterator of `(batch, list[Scores])` in the loader's order, with up to `depth` batches ready or under way.

    Reading begins at the first `next`. An error of the loader, of `sequences` or of the server is raised by `next` in
    the place of the batch it belongs to; nothing is skipped, and the iteration is over. Stopping early, `close`, a
    `with` block, garbage collection and the interpreter's end all stop the thread; if the loader is just making a
    batch, it stops after that.
    """

    def __init__(self, loader: Iterable[B], begin: Callable[[B], Future[list[Scores]]], depth: Wanted | Depth) -> None:
        self.wait_seconds = 0.0
        """Time spent waiting in `next`, in seconds: what the consumer lost to loading and scoring."""
        self.batches = 0
        """Batches handed out, those of a loaded state included."""
        self._depth = depth if isinstance(depth, Depth) else Depth(depth)
        self._ended = False
        self._unread: tuple[Iterable[B], Callable[[B], Future[list[Scores]]]] | None = (loader, begin)
        self._thread: threading.Thread | None = None
        self._shelf: _Shelf[B] = _Shelf(self._depth.begin())
        weakref.finalize(self, self._shelf.stop).atexit = False

    @property
    def depth(self) -> int:
        """Batches that may be ready or under way now; with depth "auto" it grows, and is 8 at first."""
        return self._depth.value

    def state_dict(self) -> dict[str, int]:
        """How many batches were handed out, as a JSON object; what was only read ahead does not count."""
        return {"batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches of an earlier `state_dict`: they are read again, but not asked about.

        The loader must give the same batches in the same order, from the first. A loader with a state of its own must
        not be given that too: it is ahead by what was read ahead. If the loader has fewer batches than the state,
        `next` raises ValueError. Raises RuntimeError after the first `next`, ValueError for what is no state.
        """
        if self._unread is None or self._ended:
            raise RuntimeError("load_state_dict: must be called before the first next, on a new Prefetch")
        batches = state.get("batches")
        if type(batches) is not int or batches < 0:
            raise ValueError(f"state: 'batches' must be a whole number of at least 0, got {dict(state)!r}")
        self.batches = batches

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[B, list[Scores]]:
        self._shelf.check_process()
        if self._ended:
            raise StopIteration
        called = time.perf_counter()
        moment = called - self.wait_seconds
        try:
            self._begin()
            placed = self._shelf.take()
            if placed is None:
                raise StopIteration
            scores = wait(placed.future)
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - called
        self.batches += 1
        self._shelf.make_room(1 + self._depth.took(moment, placed.seconds()))
        return placed.batch, scores

    def _begin(self) -> None:
        """Start the thread, the first time."""
        if self._unread is None:
            return
        (loader, begin), self._unread = self._unread, None
        self._thread = threading.Thread(
            target=_fill, args=(self._shelf, loader, begin, self.batches), name="tokenpriority-prefetch", daemon=True
        )
        _RUNNING[self._thread] = self._shelf
        self._thread.start()

    def close(self) -> None:
        """Stop: cancel what is under way and end the thread; idempotent."""
        self._ended = True
        self._shelf.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Placed(Generic[B]):
    """A batch with the scores it waits for."""

    def __init__(self, batch: B, begun: float, future: Future[list[Scores]]) -> None:
        self.batch = batch
        self.future = future
        self._begun = begun
        self._ready: float | None = None
        future.add_done_callback(self._done)

    def seconds(self) -> float:
        """How long the scores took from the beginning of their request, once they are there."""
        return (self._ready or time.perf_counter()) - self._begun

    def _done(self, _: Future[list[Scores]]) -> None:
        self._ready = time.perf_counter()


class _Shelf(Generic[B]):
    """What lies between the thread and the consumer; neither knows the other, so that the consumer can be collected."""

    def __init__(self, depth: int) -> None:
        self._pid = os.getpid()
        self._room = threading.Semaphore(depth)
        self._placed: queue.SimpleQueue[_Placed[B] | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def wait_for_room(self) -> bool:
        """Return once one more batch may be begun; False if the consumer has stopped."""
        self._room.acquire()
        return not self.stopped

    def make_room(self, batches: int) -> None:
        """Allow so many more to be begun."""
        self._room.release(batches)

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be begun."""
        return self._stopped.is_set()

    def put(self, placed: _Placed[B] | BaseException | None) -> None:
        """Place the next batch, the error met in its stead, or None for the end."""
        self._placed.put(placed)
        if self.stopped:
            self._clear()

    def take(self) -> _Placed[B] | None:
        """The next batch, None at the end; raises the error in its place."""
        placed = self._placed.get()
        if isinstance(placed, BaseException):
            raise placed
        return placed

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
        """Discard what is there and leave the end, for a consumer that waits while another thread closes."""
        with suppress(queue.Empty):
            while True:
                placed = self._placed.get_nowait()
                if isinstance(placed, _Placed):
                    discard(placed.future)
        self._placed.put(None)


def _fill(shelf: _Shelf[B], loader: Iterable[B], begin: Callable[[B], Future[list[Scores]]], handed_out: int) -> None:
    """Read the loader until its end, an error, or the consumer's stop; the first batches were handed out before."""
    try:
        iterator = iter(loader)
        for number in range(handed_out):
            if shelf.stopped:
                break
            if next(iterator, shelf) is shelf:
                raise ValueError(f"state: {handed_out} batches were handed out, but the loader ends after {number}")
        while shelf.wait_for_room():
            try:
                batch = next(iterator)
            except StopIteration:
                break
            begun = time.perf_counter()
            shelf.put(_Placed(batch, begun, begin(batch)))
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
