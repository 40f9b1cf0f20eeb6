"""How much memory a process takes for a piece of work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil


def rise(pid: int, work: Callable[[], object]) -> float:
    """MiB by which the process's peak resident memory rose above what it held before `work`."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew from the present size
    before = _status(pid, "VmRSS")
    work()
    return max(0.0, (_status(pid, "VmHWM") - before) / 1024)


def children(name: str) -> set[int]:
    """Processes below this one whose command line contains `name`."""
    return {each.pid for each in psutil.Process().children(recursive=True) if name in " ".join(each.cmdline())}


def _status(pid: int, field: str) -> int:
    """KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
