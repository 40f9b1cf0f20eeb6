"""SIGTERM to a real process: what it accepted finishes and is kept, what is new is refused, then it ends with 0."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from replica import SECONDS, Replica, body, configured, error_type, fresh, logprobs, results, truth
from tokenpriority import wire


def test_accepted_finishes_new_is_refused_and_all_is_kept(tmp_path: Path, wait_until: Any) -> None:
    config = configured(tmp_path, f"sqlite:///{tmp_path / 'evidence.db'}")
    sequences = fresh(6, 200)
    content = body(sequences)
    with Replica(config) as replica:
        address = httpx.URL(replica.url)
        with socket.create_connection((address.host, address.port or 80), timeout=30) as slow:
            head = (
                f"POST /v1/priorities HTTP/1.1\r\nhost: x\r\ncontent-type: {wire.MSGPACK}\r\naccept: {wire.MSGPACK}\r\n"
            )
            slow.sendall(f"{head}connection: close\r\ncontent-length: {len(content)}\r\n\r\n".encode())
            slow.sendall(content[:100])
            # it, and the one that asks
            wait_until(lambda: replica.metric("tokenpriority_requests_in_progress") >= 2, "the slow request", SECONDS)
            replica.terminate()
            wait_until(lambda: replica.http.get("/readyz").status_code != 200, "the drain", SECONDS)
            refused = replica.score(fresh(1, 8))
            assert (refused.status_code, error_type(refused)) == (503, "unavailable")
            assert int(refused.headers["retry-after"]) >= 1
            slow.sendall(content[100:])
            answer = _read(slow)
        assert replica.status() == 0
        for ids, result in zip(sequences, results(answer), strict=True):
            np.testing.assert_array_equal(logprobs(result), truth(ids))
        assert "Traceback" not in replica.log
        assert all(json.loads(line) for line in replica.log.splitlines())
    with Replica(config) as replica:
        assert all(result.cached for result in results(replica.score(sequences, cached_only=True)))


def _read(sock: socket.socket) -> httpx.Response:
    """One answer, of a connection that is closed after it."""
    received = b""
    while part := sock.recv(1 << 16):
        received += part
    head, _, content = received.partition(b"\r\n\r\n")
    return httpx.Response(int(head.split()[1]), content=content)
