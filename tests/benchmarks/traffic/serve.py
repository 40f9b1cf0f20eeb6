"""Serves a configuration with a queue of choice: `python serve.py CONFIG fair|fifo`. Prints its address."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import read
from tokenpriority_service.scheduling.fair_queue import FairQueue
from tokenpriority_service.telemetry import log
from tokenpriority_service.web.server import Server, listen
from traffic.fifo import Fifo

QUEUES: dict[str, type[FairQueue[Any]]] = {"fair": FairQueue, "fifo": Fifo}


def main(config: str, queue: str) -> None:
    """As `tokenpriority serve --config CONFIG`, but for the queue."""
    log.configure()
    settings = read(Path(config))
    sock = listen(settings.server.host, settings.server.port)
    app = create_app(settings, queue=QUEUES[queue])
    print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    Server(app, app.state.service.gate, settings.server.drain_seconds).run(sockets=[sock])


if __name__ == "__main__":
    main(*sys.argv[1:])
