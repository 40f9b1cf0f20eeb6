from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tokenpriority_trainer.demo.processes import ChildFailed, Children, wait_for

# Starts a server as the demo does, says its process id once it listens, and then waits to be stopped.
PARENT = """
import sys, time
from pathlib import Path
from tokenpriority_trainer.demo.processes import Children, wait_for
with Children(Path(sys.argv[1]), {}) as children:
    child = children.start("server", ["serve", "--model", "any", "--engine", "fake", "--port", "0"])
    wait_for(lambda: b"listens on" in child.log.read_bytes(), [child], seconds=120, what="the server")
    print(child.log.read_text(), flush=True)
    if sys.argv[2] == "raise":
        raise RuntimeError("something else went wrong")
    time.sleep(300)
"""


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        child = children.start("training", ["train", str(tmp_path / "no-such.toml")])
        with pytest.raises(ChildFailed, match=r"training ended with exit status 1(.|\n)*no-such\.toml: No such file"):
            wait_for(lambda: False, [child], seconds=60, what="never")


def test_a_child_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        child = children.start("methods", ["methods"])
        with pytest.raises(ChildFailed, match="methods ended while the server was awaited"):
            wait_for(lambda: False, [child], seconds=60, what="the server")


def test_waiting_ends(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="the server: not within 0 s"):
        wait_for(lambda: False, [], seconds=0, what="the server")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads the children of a process from /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, "raise"])
def test_no_child_outlives_its_parent(how: signal.Signals | str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PARENT, str(tmp_path), str(how)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        assert "listens on" in parent.stdout.readline()
        [child] = children_of(parent.pid)
        if isinstance(how, signal.Signals):
            parent.send_signal(how)
        assert parent.wait(60) != 0
    assert not Path(f"/proc/{child}").exists()


def children_of(pid: int) -> list[int]:
    """Process ids of a process's children, as Linux tells them."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_child_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenpriority_trainer.demo.processes._GRACE", 0.2)
    with Children(tmp_path, {}) as children:
        child = children.start("server", ["serve", "--model", "any", "--engine", "fake", "--port", "0"])
        os.kill(child._process.pid, signal.SIGSTOP)  # a stopped process acts on no SIGTERM
        time.sleep(0.1)
    assert child._process.returncode == -signal.SIGKILL
