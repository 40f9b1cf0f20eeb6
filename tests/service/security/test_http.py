"""Connections that misbehave, over a raw socket: each is answered or closed in time, and the others are served."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tokenpriority import wire
from tokenpriority_service.configuration.settings import ServerSettings, Settings, TeamSettings
from tokenpriority_service.web import body as bodies
from tokenpriority_service.web import protocol

GOOD = wire.encode({"sequences": [{"token_ids": [1, 2, 3]}]}, wire.JSON)
POST = b"POST /v1/priorities HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n"
CHUNKS = b"transfer-encoding: chunked\r\n\r\n"
MAX_BODY = 200_000


@pytest.fixture(scope="module")
def small(serve: Any, make_probe: Any) -> Any:
    from tokenpriority_service.engines.fake import FakeEngine

    with serve({"reference": FakeEngine()}, Settings(server=ServerSettings(max_body_bytes=MAX_BODY))) as server:
        yield server


@contextlib.contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """Until the server closes, which it must (the socket's timeout fails the test)."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            received += piece
    return received


def statuses(answer: bytes) -> list[int]:
    return [int(part.split(b" ", 1)[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def exchange(server: Any, request: bytes) -> bytes:
    """All that a request is answered with, as the last one of its connection."""
    with connected(server) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request.replace(b"host: x\r\n", b"host: x\r\nconnection: close\r\n", 1))
        return everything(connection)


def well(server: Any) -> None:
    """The server scores as if nothing had happened."""
    assert server.score({"token_ids": [1, 2, 3]})[0]["priorities"] == [0, 1, 1]


REFUSED = {
    "no number": (POST + b"content-length: ten\r\n\r\n" + GOOD, 400),
    "negative": (POST + b"content-length: -5\r\n\r\n" + GOOD, 400),
    "signed": (POST + b"content-length: +5\r\n\r\n" + GOOD, 400),
    "a list": (POST + b"content-length: 5, 5\r\n\r\n" + GOOD, 400),
    "beyond 64 bits": (POST + b"content-length: 99999999999999999999999\r\n\r\n" + GOOD, 400),
    "two": (POST + LENGTH % 5 + LENGTH % len(GOOD) + b"\r\n" + GOOD, 400),
    "two alike": (POST + 2 * (LENGTH % len(GOOD)) + b"\r\n" + GOOD, 400),
    "length and chunks": (POST + LENGTH % 5 + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "an unknown coding": (POST + b"transfer-encoding: gzip\r\n\r\n" + GOOD, 400),
    "over the limit": (POST + LENGTH % (MAX_BODY + 1) + b"\r\n", 413),
    "far over the limit": (POST + LENGTH % 2**62 + b"\r\n", 413),
    "chunk size of no number": (POST + b"transfer-encoding: chunked\r\n\r\nxyz\r\n" + GOOD, 400),
    "chunk longer than it says": (POST + b"transfer-encoding: chunked\r\n\r\n2\r\n" + GOOD + b"\r\n0\r\n\r\n", 400),
    "chunks over the limit": (
        POST + b"transfer-encoding: chunked\r\n\r\n" + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 8 + b"0\r\n\r\n", 413,
    ),
    "gzip": (POST + b"content-encoding: gzip\r\n" + LENGTH % 4 + b"\r\n\x1f\x8b\x08\x00", 422),
    "two codings": (POST + b"content-encoding: identity, deflate\r\n" + LENGTH % 2 + b"\r\n{}", 422),
    "a space before the colon": (POST + b"x-a : 1\r\n\r\n", 400),
    "a header of no name": (POST + b": 1\r\n\r\n", 400),
    "a null in a header": (POST + b"x-a: a\0b\r\n\r\n", 400),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a long path": (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "a path that climbs": (b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "an escaped path that climbs": (b"GET /%2e%2e/%2e%2e/etc/passwd%00 HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "a path of no UTF-8": (b"GET /%ff%fe HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "a method nobody has": (b"BREW /v1/priorities HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "connect": (b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "trace": (b"TRACE /v1/priorities HTTP/1.1\r\nhost: x\r\n\r\n", 405),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_requests_that_lie(small: Any, name: str) -> None:
    request, status = REFUSED[name]
    answer = exchange(small, request)
    assert statuses(answer)[:1] == [status], answer[:500]
    assert 200 not in statuses(answer)
    assert b"Traceback" not in answer
    well(small)


HOSTS = [b"", b"host: \r\n", b"host: evil.example\r\n", b"host: x\r\nhost: y\r\n", b"host: [::1]:99999\r\n"]
HOSTS += [b"host: ../../\r\n", b"host: " + bytes(range(0x80, 0x100)) + b"\r\n", b"host: a b\r\n"]


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_means_anything(small: Any, host: bytes) -> None:
    """Nothing is built from it, so nothing can be led astray by it."""
    answer = exchange(small, b"GET /v1/nowhere HTTP/1.1\r\n" + host + b"connection: close\r\n\r\n")
    assert statuses(answer) in ([404], [400])
    assert b"evil" not in answer
    well(small)


def test_pipelined_requests_are_answered_in_order(small: Any) -> None:
    one = POST + LENGTH % len(GOOD) + b"x-request-id: %d\r\n\r\n" + GOOD
    last = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with connected(small) as connection:
        connection.sendall(b"".join(one % number for number in range(50)) + last)
        answer = everything(connection)
    assert statuses(answer) == [200] * 51
    ids = [int(part.split(b"\r\n", 1)[0]) for part in answer.split(b"x-request-id: ")[1:51]]
    assert ids == list(range(50))


def test_a_body_that_was_not_asked_for_is_no_request(small: Any) -> None:
    """What follows a body of its declared length is a request; what is inside is none."""
    inner = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = exchange(small, POST + LENGTH % len(inner) + b"\r\n" + inner)
    assert statuses(answer) == [400]


def test_a_flood_of_headers_is_cut_off(small: Any) -> None:
    before = psutil.Process().memory_info().rss
    for flood in (b"x-a: %s\r\n" % (b"b" * 4000), b"c" * 4000):
        with connected(small) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(POST)
            for _ in range(25_000):  # 100 MB, if anyone takes them
                connection.sendall(flood)
            pytest.fail("100 MB of headers were taken")
    assert psutil.Process().memory_info().rss - before < 40 * 2**20
    well(small)


def test_a_flood_of_headers_is_told_why(small: Any) -> None:
    head = POST + b"x-a: %s\r\n" % (b"b" * 1000) * 100
    with connected(small) as connection:
        for start in range(0, len(head), 8000):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(head[start : start + 8000])
            time.sleep(0.001)
        answer = everything(connection)
    assert answer == b"" or statuses(answer) == [431]  # a reset may overtake the answer
    well(small)


def test_many_headers_of_a_normal_size_are_taken(small: Any) -> None:
    head = POST + b"".join(b"x-%d: %d\r\n" % (number, number) for number in range(500)) + LENGTH % len(GOOD)
    answer = exchange(small, head + b"\r\n" + GOOD)
    assert statuses(answer) == [200]


def chunked(head: bytes = b"", trailers: bytes = b"") -> bytes:
    """A good request in one chunk."""
    return POST + head + CHUNKS + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(GOOD), GOOD, trailers)


@pytest.mark.parametrize("head", [POST, b"GET /healthz HTTP/1.1\r\nhost: x\r\n"])
@pytest.mark.parametrize("flood", [b"a: b\r\n" * 700, b"c" * 4000, b"0" * 4000], ids=["fields", "a name", "a size"])
def test_a_flood_after_a_head_is_cut_off(small: Any, head: bytes, flood: bytes) -> None:
    """Trailers, or what stands before a chunk, whether the request was answered already or not."""
    before = psutil.Process().memory_info().rss
    with connected(small) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(head + CHUNKS + (b"" if flood[:1] == b"0" else b"0\r\n"))
        for _ in range(5_000):  # 20 MB, if anyone takes them
            connection.sendall(flood)
        pytest.fail("20 MB of trailers were taken")
    assert psutil.Process().memory_info().rss - before < 40 * 2**20
    well(small)


def test_a_flood_of_trailers_is_told_why(small: Any) -> None:
    with connected(small) as connection:
        connection.sendall(POST + CHUNKS + b"0\r\n")
        for _ in range(20):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"x-a: %s\r\n" % (b"b" * 4000))
            time.sleep(0.001)
        answer = everything(connection)
    assert answer == b"" or statuses(answer) == [431]  # a reset may overtake the answer
    well(small)


def test_small_trailers_and_many_small_chunks_are_taken(small: Any) -> None:
    assert statuses(exchange(small, chunked(trailers=b"x-checksum: 1\r\nx-empty:\r\n"))) == [200]
    pieces = b"".join(b"1;name=value\r\n%c\r\n" % byte for byte in GOOD + b" " * 20_000)
    assert statuses(exchange(small, POST + CHUNKS + pieces + b"0\r\n\r\n")) == [200]


def test_trailers_are_no_headers(serve: Any, probe: Any) -> None:
    """Neither of their own request nor of the next: a key among them opens nothing."""
    teams = {"alpha": TeamSettings(key_sha256=hashlib.sha256(b"a key").hexdigest())}
    key = b"authorization: Bearer a key\r\n"
    with serve({"reference": probe}, Settings(teams=teams)) as server:
        assert statuses(exchange(server, chunked(head=key))) == [200]
        assert statuses(exchange(server, chunked(trailers=key))) == [401]
        with connected(server) as connection:
            connection.sendall(chunked(head=key, trailers=key) + chunked(head=b"connection: close\r\n"))
            assert statuses(everything(connection)) == [200, 401]


def test_slow_heads_are_closed(serve: Any, probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    with serve({"reference": probe}) as server:
        for sent in (b"", b"POST /v1/pri", POST, POST + b"x-a: "):
            with connected(server) as connection:
                connection.sendall(sent)
                assert statuses(everything(connection)) == [408]
        with connected(server) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(POST + b"x-a: ")
            while True:  # dripping wins no time
                connection.sendall(b"b")
                time.sleep(0.02)
        monkeypatch.undo()
        well(server)


def test_a_slow_body_is_refused(serve: Any, probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.3)
    with serve({"reference": probe}) as server, connected(server) as connection:
        connection.sendall(POST + LENGTH % len(GOOD) + b"\r\n" + GOOD[:-1])
        answer = connection.recv(65_536)
        assert statuses(answer) == [400]
        assert b"must arrive whole within 0.3 s, got %d bytes" % (len(GOOD) - 1) in answer
        monkeypatch.undo()
        well(server)


def test_two_hundred_slow_connections_hinder_nobody(small: Any) -> None:
    with contextlib.ExitStack() as all_of_them:
        slow = [all_of_them.enter_context(connected(small)) for _ in range(200)]
        for number, connection in enumerate(slow):
            connection.sendall((b"", POST, POST + LENGTH % len(GOOD) + b"\r\n" + GOOD[:-1])[number % 3])
        for _ in range(20):
            well(small)
        finished = slow[2::3]
        for connection in finished:
            connection.sendall(GOOD[-1:])
        for connection in finished:
            assert statuses(connection.recv(65_536)) == [200]
    well(small)


def test_connections_that_go_away_leave_nothing(small: Any, wait_until: Any) -> None:
    for cut in range(0, len(POST) + 60, 7):
        with connected(small) as connection:
            connection.sendall((POST + LENGTH % len(GOOD) + b"\r\n" + GOOD)[:cut])
    wait_until(lambda: small.service.gate.active == 0, "every request's end")
    well(small)
