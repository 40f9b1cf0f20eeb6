"""Two processes of one training, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SUPPORT = Path(__file__).parent

TWO = ["torch.distributed.run", "--nproc_per_node=2", "--standalone"]
"""torchrun, as a module, before what each of two processes runs."""


def launch(
    *command: str, path: tuple[Path, ...] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What this launcher said, with the support modules and `path` on the processes' search path; it must succeed."""
    searched = os.pathsep.join(map(str, [*path, SUPPORT]))
    whole = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {}), "PYTHONPATH": searched}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=280, env=whole, check=False
    )
    assert done.returncode == 0, done.stderr
    return done
