"""A function in a process of its own, so that its memory is given back and its death is survived.

Knows processes. Knows nothing of what is run.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no result, in one line."""

    reason: str


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, or Failed; what the function prints goes to standard error."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_quiet) as pool:
        try:
            return pool.submit(_guarded, function, *arguments).result()
        except BrokenProcessPool:
            return Failed("its process ended without a word: killed, or out of memory")


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    # An exception of a library may not survive the way to another process; its words do.
    try:
        return function(*arguments)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Failed(lines[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {lines[0]}")


def _quiet() -> None:
    """Standard output is the report's alone."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.dup2(2, 1)
