"""The real server in processes that are there in milliseconds: forked by one that has imported it.

Knows how a server is forked, waited for and killed; it has the fake engine and a database. The process that forks
starts no thread and opens no database. Knows nothing of what is asserted.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import httpx
import uvicorn.lifespan.on
import uvicorn.loops.uvloop  # noqa: F401  # uvicorn imports both only when a server runs

from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import DatabaseSettings, Settings
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.telemetry import log
from tokenpriority_service.web.server import Server, listen

SECONDS = 60.0
"""For anything to happen that must."""


class Forks:
    """The process that forks, and its children one after another; what they log is the file `log`."""

    def __init__(self, url: str, log: Path) -> None:
        settings = ("TOKENPRIORITY_", "OTEL_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        self.log = log
        with log.open("w") as errors:
            self._parent = subprocess.Popen(
                [sys.executable, __file__, url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**environment, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
            )
        self._child = 0
        self.http = httpx.Client(timeout=SECONDS, trust_env=False)
        """Of the server that runs; one for all, as making a client takes longer than a round's requests."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
        self._parent.communicate(timeout=SECONDS)
        self.http.close()

    def start(self) -> None:
        """A new server, ready."""
        assert not self._child
        assert self._parent.stdin is not None
        self._parent.stdin.write("start\n")
        self._parent.stdin.flush()
        pid, port = self._told().split()
        self._child = int(pid)
        self.http.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + SECONDS
        while self.http.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline, "never ready"
            time.sleep(0.005)

    def kill(self) -> None:
        """kill -9 of the server, which must not have ended by itself."""
        os.kill(self._child, signal.SIGKILL)
        self._child = 0
        assert int(self._told()) == -signal.SIGKILL

    def _told(self) -> str:
        assert self._parent.stdout is not None
        line = self._parent.stdout.readline()
        assert line, self.log.read_text()
        return line


def main(url: str) -> None:
    """Fork a server for each line on standard input, and tell its process id, its port and how it ended."""
    engine = FakeEngine()
    assert engine.tokenizer is not None  # it and an application import the rest, once for all servers
    create_app(Settings(database=DatabaseSettings(url="sqlite://")), {"reference": engine})
    gc.freeze()
    for _ in sys.stdin:
        assert threading.active_count() == 1
        with listen("127.0.0.1", 0) as sock:
            pid = os.fork()
            if not pid:
                log.configure()
                app = create_app(Settings(database=DatabaseSettings(url=url)), {"reference": engine})
                server = Server(app, app.state.service.gate, drain_seconds=30.0)
                server.run(sockets=[sock])
                os._exit(0)
            print(pid, sock.getsockname()[1], flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
