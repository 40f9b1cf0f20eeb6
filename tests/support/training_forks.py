"""Trainings in processes that are there at once, to be killed: forked by one that has imported the trainer.

Knows how a training is forked, waited for and killed. The process that forks starts no thread. Knows nothing of what
is asserted.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tokenpriority_trainer.config import load_config

SECONDS = 120.0
"""For anything to happen that must."""


class TrainingForks:
    """The process that forks, and its children one after another; what they say is the file `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self._parent = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
            )
        self._child = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
        self._parent.communicate(timeout=SECONDS)

    def start(self, config: Path) -> None:
        """Begin `tokenpriority train config --resume`."""
        assert not self._child
        assert self._parent.stdin is not None
        self._parent.stdin.write(f"{config}\n")
        self._parent.stdin.flush()
        self._child = int(self._told())

    def kill_when(self, condition: Callable[[], bool]) -> int:
        """kill -9 as soon as the condition holds; the exit status, that of the training if it ended before."""
        deadline = time.monotonic() + SECONDS
        try:
            while not condition():
                os.kill(self._child, 0)
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.0005)
            os.kill(self._child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return self.wait()

    def wait(self) -> int:
        """The exit status of the training, once it has ended."""
        self._child = 0
        return int(self._told())

    def _told(self) -> str:
        assert self._parent.stdout is not None
        line = self._parent.stdout.readline()
        assert line, self.log.read_text()
        return line


def main() -> None:
    """Fork a training for each configuration named on standard input; tell its process id, then its exit status."""
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401  # transformers imports a model when it is asked for

    from tokenpriority_trainer.run import run

    torch.set_num_threads(1)
    gc.freeze()
    for line in sys.stdin:
        assert threading.active_count() == 1
        pid = os.fork()
        if not pid:
            os.dup2(2, 1)
            try:
                run(load_config(Path(line.strip())), resume=True)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stderr.flush()
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
