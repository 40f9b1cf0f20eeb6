"""Child processes that never outlive the demo, and that say why when they fail.

Knows processes, their logs and signals. Knows nothing of what they run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

_TAIL = 25
_GRACE = 5.0
"""Seconds a child may take to stop when asked, before it is killed."""
_COMMAND = "import sys; from tokenpriority.cli import main; sys.argv[0] = 'tokenpriority'; main()"
_ENVIRONMENT = {
    # One thread each: server and trainings run at the same time, and threads that wait for a busy core only spin.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc keeps the memory of one step for the next; giving it back and faulting it in took an eighth of the time.
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}


class ChildFailed(RuntimeError):
    """A child process ended when it should not have; the message ends with the last lines of its log."""


class Child:
    """`tokenpriority ARGUMENTS` by this interpreter, in a session of its own, its output going to a log."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT, **environment},
                start_new_session=True,
            )

    def running(self) -> bool:
        """Whether it still runs. Raises ChildFailed, with the last lines of its log, if it ended with an error."""
        code = self._process.poll()
        if code:
            raise ChildFailed(f"{self.name} ended with exit status {code}; the end of {self.log}:\n{self._tail()}")
        return code is None

    def ask_to_end(self) -> None:
        """Send the whole session SIGTERM, if it still runs."""
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Return once the child is gone; it is killed, with its session, if it takes longer than its grace."""
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL:])


class Children:
    """A context in which children are started; all are stopped on the way out, whichever way that is.

    Ctrl-C reaches this process alone, since each child has its own session, and SIGTERM and SIGHUP are turned into
    SystemExit here, so that the way out is taken.
    """

    def __init__(self, logs: Path, environment: dict[str, str]) -> None:
        self._logs = logs
        self._environment = environment
        self._children: list[Child] = []
        self._before: dict[int, Any] = {}

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Start `tokenpriority ARGUMENTS`; its output goes to `LOGS/name.log`."""
        child = Child(name, arguments, self._logs / f"{name}.log", self._environment)
        self._children.append(child)
        return child

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for child in self._children:
                child.ask_to_end()
            for child in self._children:
                child.end()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)


def wait_for(done: Callable[[], bool], children: Sequence[Child], *, seconds: float, what: str) -> None:
    """Poll until `done()`, all `children` running. Raises ChildFailed if one ended, TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        for child in children:
            if not child.running():
                raise ChildFailed(f"{child.name} ended while {what} was awaited; see {child.log}")
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{what}: not within {seconds:g} s; see {', '.join(str(child.log) for child in children)}"
            )
        time.sleep(0.1)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
