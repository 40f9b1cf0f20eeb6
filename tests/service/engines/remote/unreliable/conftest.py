"""Fronts: servers before the real ones that can misbehave.

A front is an independent HTTP server on a real socket. It passes requests on, unless the test has it do otherwise.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Exchange(BaseHTTPRequestHandler):
    """One request at a front: `path`, its JSON `sent`, and what can be done with it."""

    protocol_version = "HTTP/1.1"
    front: Front
    sent: Any

    def do_GET(self) -> None:
        self._handle(b"")

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers["content-length"])))

    def log_message(self, *args: Any) -> None:
        pass

    @property
    def prompt(self) -> Any:
        """The token ids it wants scored; None for anything else, also for what only examines the server."""
        prompt = self.sent.get("input", self.sent.get("prompt"))
        examines = self.sent.get("prompt_logprobs") == 1 or "logit_bias" in self.sent or prompt == [0, 0]
        return prompt if isinstance(prompt, list) and len(prompt) != 64 and not examines else None

    def forward(self) -> Reply:
        """What the server answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.front.upstream, timeout=60)
        try:
            headers = {name: self.headers[name] for name in ("authorization", "content-type") if name in self.headers}
            connection.request(self.command, self.path, self._body or None, headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name in ("metadata", "content-type")}
            return Reply(answer.status, answer.read(), kept)
        finally:
            connection.close()

    def hang(self) -> None:
        """Until the front is released, or the caller is gone."""
        while not self.front.released.wait(0.02):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                with self.front.lock:
                    self.front.abandoned += 1
                return

    def _handle(self, body: bytes) -> None:
        self._body, self.sent = body, json.loads(body) if body else {}
        counts = self.prompt is not None
        self.front.count(self.prompt, 1)
        try:
            answer = self.front.behave(self)
        finally:
            self.front.count(None, -1 if counts else 0)
        self.close_connection = answer is None
        if answer is not None:
            with suppress(OSError):  # the caller may be gone
                self._write(answer)

    def _write(self, answer: Reply) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)


class Front:
    """A server before a server. `behave` may be changed at any time; None as an answer breaks the connection off."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.behave: Callable[[Exchange], Reply | None] = Exchange.forward
        self.asked: list[list[int]] = []
        """The prompts it was asked to score."""
        self.in_flight = self.peak = self.abandoned = 0
        self.released = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("_Exchange", (Exchange,), {"front": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def count(self, prompt: list[int] | None, change: int) -> None:
        """Count a prompt in, or one out."""
        with self.lock:
            if prompt is not None:
                self.asked.append(prompt)
            if prompt is not None or change < 0:
                self.in_flight += change
                self.peak = max(self.peak, self.in_flight)

    def close(self) -> None:
        """Let go of what hangs and stop."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a caller may go at any time
            super().handle_error(request, client_address)


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """An answer with a JSON body."""
    return Reply(status, json.dumps(value).encode(), headers or {})


@pytest.fixture(scope="session")
def kit(kit: Any) -> Any:
    """The kit of the folder above, with `reply`."""
    kit.reply = reply
    return kit


@pytest.fixture
def open_front() -> Iterator[Callable[[Any], Front]]:
    """Puts fronts before servers; all are closed in the end."""
    fronts: list[Front] = []

    def start(server: Any) -> Front:
        fronts.append(Front(server.port))
        return fronts[-1]

    yield start
    for front in fronts:
        front.close()
