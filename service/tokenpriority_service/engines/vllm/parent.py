"""The bond between an engine core and the server that started it: the core never outlives it.

vLLM's workers end with their engine core; its engine core, told nothing, would go on holding the memory of a server
that was killed.
"""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "TOKENPRIORITY_PARENT"
"""Environment variable with the process id of the server."""

_POLL_SECONDS = 1.0
_GRACE_SECONDS = 10.0


def follow() -> None:
    """In a child of that server: watch it from a thread, and end when it has ended."""
    parent = os.environ.get(VARIABLE)
    if parent is not None and os.getppid() == int(parent):
        threading.Thread(target=_watch, args=(int(parent),), name="watch-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
