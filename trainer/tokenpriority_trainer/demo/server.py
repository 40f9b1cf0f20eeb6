"""The scoring server, as its own process.

Knows how `tokenpriority serve` is configured and when it is ready. Knows nothing of what is scored.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from tokenpriority import Client
from tokenpriority.errors import ConnectionFailed
from tokenpriority_trainer.demo.processes import Child, Children, wait_for
from tokenpriority_trainer.demo.toml import write_toml

_READY_SECONDS = 120.0


class Server:
    """A starting or running server of some named models; it lives as long as `children`'s context."""

    def __init__(self, children: Children, models: Mapping[str, Path], config: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        tables: dict[str, dict[str, object]] = {f"models.{name}": _model(path) for name, path in models.items()}
        tables["server"] = {"host": "127.0.0.1", "port": port}
        tables["database"] = {"url": "sqlite://"}
        write_toml(config, tables)
        self.url = f"http://127.0.0.1:{port}"
        self.child: Child = children.start("server", ["serve", "--config", str(config)])

    def wait_until_ready(self) -> None:
        """Return once /readyz says so.

        Raises ChildFailed if the server ends, Unavailable if a model cannot be loaded, TimeoutError after two minutes.
        """
        with closing(Client(self.url)) as client:
            wait_for(lambda: _ready(client), [self.child], seconds=_READY_SECONDS, what=f"the server at {self.url}")


def _ready(client: Client) -> bool:
    try:
        client.wait_until_ready(timeout=0.5)
    except ConnectionFailed:
        return False
    return True


def _model(path: Path) -> dict[str, object]:
    return {"model": path, "engine": "torch", "dtype": "float32", "device": "cpu", "threads": 1}
