"""The server under load: a process of its own with a torch and a fake model, a database and the keys of two teams."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import psutil

from tokenpriority import schema
from traffic.target import Target

Queue = Literal["fair", "fifo"]
CLASSES: dict[str, schema.ServiceClass] = {"quiet": "interactive", "bulk": "bulk", "operator": "interactive"}
"""Team -> the class of its requests."""
SCOPES = {"operator": "admin"}
START_SECONDS = 120
STOP_SECONDS = 15
CONFIG = """
[server]
port = 0
drain_seconds = 2
[database]
url = "sqlite:///{database}"
[store]
memory_bytes = 50331648
max_bytes = 134217728
[models.reference]
model = "{model}"
engine = "torch"
threads = 1
[models.fake]
model = "fake"
engine = "fake"
"""
COMMAND = "from tokenpriority.cli import main; main()"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Server:
    """One server process, ready."""

    def __init__(self, url: str, pid: int, keys: dict[str, str]) -> None:
        self.url = url
        self.pid = pid
        self.keys = keys

    def target(self, team: str, model: str = "reference") -> Target:
        """It, as a team calls it."""
        return Target(self.url, self.keys[team], CLASSES[team], model)

    @property
    def resident_mib(self) -> float:
        """Its memory."""
        return float(psutil.Process(self.pid).memory_info().rss) / (1 << 20)

    def wait(self, *, busy: bool) -> None:
        """Until something is queued, or nothing is. Raises TimeoutError."""
        for _ in range(600):
            headers = {"authorization": f"Bearer {self.keys['quiet']}"}
            limits = httpx.get(f"{self.url}/v1/limits", headers=headers, trust_env=False).raise_for_status().json()
            if bool(limits["queued_tokens"]) == busy:
                return
            time.sleep(0.1)
        raise TimeoutError(f"the queue never became {'busy' if busy else 'empty'}")


@contextlib.contextmanager
def server(folder: Path, model: Path, queue: Queue) -> Iterator[Server]:
    """A server whose files lie in `folder`. It is stopped at the end, by force if it does not stop by itself."""
    folder.mkdir()
    config = folder / "server.toml"
    config.write_text(CONFIG.format(database=folder / "server.db", model=model))
    keys = {team: _key(config, team) for team in CLASSES}
    command = [sys.executable, "-u", str(Path(__file__).with_name("serve.py")), str(config), queue]
    log = folder / "log"
    # In a session of its own: Ctrl-C reaches this script, which then stops it.
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as child,
    ):
        try:
            assert child.stdout is not None
            url = child.stdout.readline().strip()
            _wait_until_ready(url, child, log)
            yield Server(url, child.pid, keys)
        finally:
            child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()


def _environment() -> dict[str, str]:
    """Ours, without settings that would go before the file's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOKENPRIORITY_")} | ENVIRONMENT


def _key(config: Path, team: str) -> str:
    """A new key of a team, made as an operator makes it."""
    options = ["--team", team, "--scope", SCOPES.get(team, "score"), "--config", str(config), "--json"]
    command = [sys.executable, "-c", COMMAND, "keys", "create", *options]
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if made.returncode:
        raise RuntimeError(f"tokenpriority keys create: {made.stderr}")
    key: str = json.loads(made.stdout)["key"]
    return key


def _wait_until_ready(url: str, child: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while url and child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
