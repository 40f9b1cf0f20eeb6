"""The process that serves: its socket, its signals, its end.

Knows uvicorn. On SIGTERM or SIGINT it drains: it goes on listening, refuses new requests with 503, lets accepted ones
finish within `drain_seconds`, then stops with exit status 0. A second signal stops it at once.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tokenpriority_service.web.access import Gate
from tokenpriority_service.web.protocol import Protocol

BACKLOG = 2048
"""Connections that may wait to be accepted."""

logger = logging.getLogger(__name__)


class PortTaken(Exception):
    """The address cannot be listened on; the message is one line."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: connections wait in it until the server is up. Raises PortTaken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with contextlib.ExitStack() as unless_listening:
            sock = unless_listening.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            unless_listening.pop_all()
    except OSError as error:
        raise PortTaken(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return sock


class Server(uvicorn.Server):
    """uvicorn with one worker, uvloop and httptools, that drains."""

    def __init__(self, app: FastAPI, gate: Gate, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=Protocol,
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                backlog=BACKLOG,
                # Drained already when it gets there: what is left is cancelled.
                timeout_graceful_shutdown=1,
            )
        )
        self._gate = gate
        self._drain_seconds = drain_seconds
        self._deadline = float("inf")
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signature is uvicorn's
        """Begin to drain; at the second signal, stop."""
        if self._gate.draining:
            self.should_exit = self.force_exit = True
            return
        self._gate.draining = True
        self._deadline = time.monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop."""
        if self._gate.draining and not self._told:  # not in the handler: a signal may come while a line is written
            self._told = True
            logger.info("draining %d requests, for at most %g s", self._gate.active, self._drain_seconds)
        late = time.monotonic() > self._deadline
        if self._gate.draining and (late or not self._gate.active):
            if late:
                logger.warning("stopping with %d requests unfinished", self._gate.active)
            self.should_exit = True
        return await super().on_tick(counter)
