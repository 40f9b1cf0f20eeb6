"""Where so many bytes fit: on the GPU, in memory, or nowhere.

Knows what is free now. Knows nothing of what it is for.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_GIB = 1 << 30


def place(needed: int, what: str) -> str:
    """The device that has `needed` bytes free: "cuda" before "cpu". Raises ValueError, naming both amounts."""
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] >= needed:
        return "cuda"
    if (free := free_memory()) >= needed:
        return "cpu"
    raise ValueError(f"{what} needs {needed / _GIB:.1f} GiB, {free / _GIB:.1f} GiB are free")


def free_memory() -> int:
    """Bytes of memory a new process can have without swapping."""
    if _MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # no system but Linux says what is free
