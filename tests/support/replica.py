"""`tokenpriority serve` as its users start it: a process of its own, with the fake engine and a configuration file.

Knows how one is started, asked, stopped and killed. Knows nothing of what is asserted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import numpy as np

from tokenpriority import schema, wire
from tokenpriority_service.engines.engine import Job
from tokenpriority_service.engines.fake import FakeEngine

COMMAND = [sys.executable, "-u", "-c", "from tokenpriority.cli import main; main()"]
CONFIG = """
[server]
port = 0
[database]
url = "{url}"
[models.reference]
model = "fake"
engine = "fake"
{more}
"""
SECONDS = 60.0
"""For anything to happen that must."""

Ids = np.ndarray[Any, np.dtype[np.uint32]]


def configured(folder: Path, url: str, more: str = "") -> Path:
    """The configuration file of a server on this database."""
    file = folder / "server.toml"
    file.write_text(CONFIG.format(url=url, more=more))
    return file


def run(config: Path, *arguments: str) -> str:
    """What `tokenpriority ARGUMENTS --config CONFIG` prints; it must succeed."""
    command = [*COMMAND, *arguments, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def truth(ids: Ids) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The log-probabilities of one sequence, (T,), from the engine itself."""
    (rows,) = asyncio.run(FakeEngine(model="fake").score([Job(ids)]))
    assert not isinstance(rows, Exception)
    logprobs: np.ndarray[Any, np.dtype[np.float32]] = rows[0]
    return logprobs


def fresh(count: int, tokens: int) -> list[Ids]:
    """Sequences nobody has seen."""
    return list(np.random.default_rng().integers(0, 256, (count, tokens), np.uint32))


def body(sequences: list[Ids], **envelope: Any) -> bytes:
    """A request for them, in msgpack."""
    items = [schema.SequenceItem(token_ids=wire.pack(ids, wire.U4, wire.MSGPACK)) for ids in sequences]
    return wire.encode(schema.PriorityRequest(sequences=items, **envelope), wire.MSGPACK)


def results(answer: httpx.Response) -> list[schema.ResultItem]:
    """Those of a request that succeeded."""
    assert answer.status_code == 200, answer.content[:500]
    return wire.decode(answer.content, schema.PriorityResponse, wire.MSGPACK).results


def logprobs(result: schema.ResultItem) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Those of one result."""
    assert isinstance(result.logprobs, bytes), result
    return wire.unpack(result.logprobs, wire.F4, "logprobs")


class Replica:
    """One process, ready; its log is a file beside the configuration."""

    def __init__(self, config: Path, name: str = "replica") -> None:
        self._log = config.with_name(f"{name}.log")
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--config", str(config)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(),
            )
        assert self.process.stdout is not None
        found = re.search(r"http://\S+", self.process.stdout.readline())
        assert found is not None, self.log
        self.http = httpx.Client(base_url=found[0], timeout=SECONDS, trust_env=False)
        self.until_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Its address."""
        return str(self.http.base_url)

    @property
    def log(self) -> str:
        """What it logged so far."""
        return self._log.read_text()

    def score(self, sequences: list[Ids], key: str | None = None, **envelope: Any) -> httpx.Response:
        """The answer to a request in msgpack."""
        return ask(self.http, sequences, key, **envelope)

    def get(self, path: str, key: str | None = None) -> Any:
        """What a route tells in JSON; it must succeed."""
        return self.http.get(path, headers=headers(key)).raise_for_status().json()

    def metric(self, name: str, key: str | None = None) -> float:
        """The sum of a metric's samples."""
        lines = self.http.get("/metrics", headers=headers(key)).raise_for_status().text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def until_ready(self) -> None:
        """Wait until it can score."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/readyz").status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError("never ready")

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def status(self) -> int:
        """Its exit status, once it ends."""
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        """kill -9, if it still runs."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.http.close()


def headers(key: str | None) -> dict[str, str]:
    """Those that carry a key."""
    return {"authorization": f"Bearer {key}"} if key else {}


def ask(http: httpx.Client, sequences: list[Ids], key: str | None = None, **envelope: Any) -> httpx.Response:
    """The answer to a request in msgpack."""
    media = {"content-type": wire.MSGPACK, "accept": wire.MSGPACK}
    return http.post("/v1/priorities", content=body(sequences, **envelope), headers=media | headers(key))


def error_type(answer: httpx.Response) -> str:
    """Of a request that failed."""
    return msgspec.msgpack.decode(answer.content, type=schema.ErrorResponse).error.type


def _environment() -> dict[str, str]:
    """Ours, without settings that would go before the file's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOKENPRIORITY_")}
