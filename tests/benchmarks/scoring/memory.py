"""How much memory a process takes for a piece of work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def rise(pid: int, work: Callable[[], object]) -> float:
    """MiB by which the process's peak resident memory rose above what it held before `work`."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew from the present size
    before = _status(pid, "VmRSS")
    work()
    return max(0.0, (_status(pid, "VmHWM") - before) / 1024)


def children(name: str) -> set[int]:
    """Processes below this one whose command line or name contains `name`."""
    return {pid for pid in _below() if name in _name(pid)}


def _below() -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found: set[int] = set()
    fresh = {int(Path("/proc/self").resolve().name)}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") + Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def _status(pid: int, field: str) -> int:
    """KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
