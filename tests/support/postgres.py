"""A PostgreSQL server of the tests' own, in a temporary folder, on a free loopback port.

Knows the programs `initdb` and `postgres`, and how a server is stopped gently, at once, or by kill -9. They refuse to
run as root: then they run as the user `postgres`, or `nobody`. Knows nothing of what is kept in the databases.

    with Postgres() as server:
        url = server.create_database()
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg

USER = "postgres"
START_SECONDS = 60.0
STOP_SECONDS = 60.0


class Postgres:
    """One server. Restarted, it keeps its port, and so the URLs of its databases hold.

    `fsync` off (the default) is safe against anything but a crash of the whole machine.
    """

    def __init__(self, *, fsync: bool = False, max_connections: int = 100, settings: Sequence[str] = ()) -> None:
        self.port = _free_port()
        self._options = [f"port={self.port}", f"max_connections={max_connections}", "listen_addresses=127.0.0.1"]
        self._options += ["unix_socket_directories=", "shared_buffers=64MB", "dynamic_shared_memory_type=mmap"]
        self._options += [] if fsync else ["fsync=off", "full_page_writes=off"]
        self._options += settings
        self._programs = _programs()
        self._as = _unprivileged()
        self._folder = Path(tempfile.mkdtemp(prefix="tokenpriority-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._create()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """URL of one of its databases."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url(name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._process is None, "the server runs already"
        options = [argument for option in self._options for argument in ("-c", option)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._as,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"postgres ended: {self._log()}"
            assert time.monotonic() < deadline, f"postgres does not answer: {self._log()}"
            time.sleep(0.05)

    def stop(self, *, immediate: bool = False) -> None:
        """Stop it: connections are closed and all is written; `immediate`: as it would by a crash of its own."""
        self._end(signal.SIGQUIT if immediate else signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of the server and of every process of it."""
        self._end(signal.SIGKILL)

    def restart(self, *, immediate: bool = False) -> None:
        """Stop and start."""
        self.stop(immediate=immediate)
        self.start()

    def close(self) -> None:
        """Stop it if it runs, and remove all it wrote."""
        if self._process is not None:
            self.stop(immediate=True)
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _create(self) -> None:
        if self._as:
            shutil.chown(self._folder, self._as["user"], self._as["group"])
        command = [
            str(self._programs / "initdb"),
            "-D",
            str(self._data),
            "--username",
            USER,
            "--auth=trust",
            "--no-sync",
        ]
        command += ["--encoding=UTF8", "--locale=C"]
        done = subprocess.run(command, capture_output=True, cwd=self._folder, check=False, **self._as)
        assert done.returncode == 0, f"initdb failed: {done.stderr.decode(errors='replace')}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None, "the server does not run"
        children = psutil.Process(self._process.pid).children(recursive=True) if how == signal.SIGKILL else []
        self._process.send_signal(how)
        for child in children:
            child.kill()
        psutil.wait_procs(children, STOP_SECONDS)  # they hold the shared memory a new server needs
        self._process.wait(STOP_SECONDS)
        self._process = None

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]


def _programs() -> Path:
    """The folder of `initdb` and `postgres`: that of PATH, or the newest of Debian's. Fails if there is none."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: float(each.parts[-3]))
    assert debian, "no PostgreSQL server here: on Debian, apt-get install postgresql"
    return debian[-1].parent


def _unprivileged() -> dict[str, Any]:
    """What makes subprocess run a program as somebody who is not root."""
    if os.getuid() != 0:
        return {}
    names = {each.pw_name for each in pwd.getpwall()}
    user = pwd.getpwnam(USER if USER in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
