"""Spans, as a real collector gets them over a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tokenpriority_service.configuration.settings import ServerSettings, Settings
from tokenpriority_service.configuration.settings_errors import InvalidSettings
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.telemetry import otlp, tracing
from tokenpriority_service.telemetry.tracing import Tracer, Untraced, open_tracer

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PRIVATE = "the token content 464 2068"


class Receiver(ThreadingHTTPServer):
    """An OpenTelemetry collector: OTLP over HTTP, spans by name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        self.status = 200
        self.held = threading.Event()
        self.held.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def spans(self) -> dict[str, Span]:
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.held.wait()
        self.server.paths.append(self.path)
        if self.server.status == 200:
            request = ExportTraceServiceRequest()
            request.ParseFromString(body)
            self.server.requests.append(request)
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.held.set()
    server.shutdown()
    server.server_close()


@contextmanager
def sending(receiver: Receiver) -> Iterator[Tracer]:
    tracer = open_tracer(receiver.url)
    try:
        yield tracer
    finally:
        tracer.close()


def attributes(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


def test_spans_arrive_with_their_parents(receiver: Receiver) -> None:
    async def part(tracer: Tracer, name: str) -> None:
        with tracer.span(name, tokens=3):
            await asyncio.sleep(0)

    def in_thread(tracer: Tracer) -> None:
        with tracer.span("priority"):
            pass

    async def request(tracer: Tracer) -> str | None:
        with tracer.request(f"00-{TRACE}-{CALLER}-01") as span:
            await asyncio.gather(asyncio.create_task(part(tracer, "door")), part(tracer, "store"))
            with tracer.span("charge") as charge:
                charge.set(tokens=12, team="alpha", absent=None)
            await asyncio.to_thread(in_thread, tracer)
            span.set(route="/v1/priorities", status=200)
            return span.trace_id

    with sending(receiver) as tracer:
        assert asyncio.run(request(tracer)) == TRACE
    spans = receiver.spans
    assert set(spans) == {"request", "door", "store", "charge", "priority"}
    assert set(receiver.paths) == {"/v1/traces"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    root = spans.pop("request")
    assert root.parent_span_id.hex() == CALLER
    assert root.kind == Span.SPAN_KIND_SERVER
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    assert attributes(root) == {"route": "/v1/priorities", "status": 200}
    assert attributes(spans["charge"]) == {"tokens": 12, "team": "alpha"}
    [resource] = {request.resource_spans[0].resource.SerializeToString() for request in receiver.requests}
    assert b"tokenpriority" in resource


def test_requests_at_the_same_time_have_traces_of_their_own(receiver: Receiver) -> None:
    async def request(tracer: Tracer, name: str) -> tuple[str, str | None]:
        with tracer.request(None) as span:
            await asyncio.sleep(0)
            with tracer.span(name):
                await asyncio.sleep(0)
            return name, span.trace_id

    async def all_requests(tracer: Tracer) -> dict[str, str | None]:
        return dict(await asyncio.gather(*(request(tracer, f"part {i}") for i in range(20))))

    with sending(receiver) as tracer:
        ids = asyncio.run(all_requests(tracer))
    assert len(set(ids.values())) == 20
    assert {name: receiver.spans[name].trace_id.hex() for name in ids} == ids


def test_a_trace_is_not_continued_from_the_server_s_own_context(receiver: Receiver) -> None:
    with sending(receiver) as tracer, tracer.request(None) as first, tracer.request(None) as second:
        assert first.trace_id != second.trace_id


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{CALLER}-01", PRIVATE, "00-" + "f" * 5000])
def test_an_invalid_traceparent_begins_a_trace(receiver: Receiver, header: str) -> None:
    with sending(receiver) as tracer, tracer.request(header) as span:
        made = span.trace_id
    assert made is not None
    assert len(made) == 32
    assert made.strip("0")
    assert receiver.spans["request"].parent_span_id == b""


def test_a_caller_that_does_not_sample_is_taken_at_its_word(receiver: Receiver) -> None:
    with sending(receiver) as tracer:
        with tracer.request(f"00-{TRACE}-{CALLER}-00") as span, tracer.span("door"):
            assert span.trace_id == TRACE
        with tracer.request(None):
            pass
    assert list(receiver.spans) == ["request"]
    assert receiver.spans["request"].trace_id.hex() != TRACE


def test_an_exception_is_told_by_type_alone(receiver: Receiver) -> None:
    with sending(receiver) as tracer:
        with pytest.raises(ValueError, match=PRIVATE), tracer.request(None), tracer.span("door"):
            raise ValueError(PRIVATE)
        with tracer.request(None) as span:
            span.fail("engine_fault")
    assert receiver.spans["door"].status == Status(code=Status.STATUS_CODE_ERROR, message="ValueError")
    assert receiver.spans["request"].status == Status(code=Status.STATUS_CODE_ERROR, message="engine_fault")
    for request in receiver.requests:
        assert PRIVATE.encode() not in request.SerializeToString()
        assert b"exception" not in request.SerializeToString()


def test_a_collector_that_is_away_costs_spans_and_two_lines(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with sending(receiver) as tracer:
        for count, status in enumerate((400, 400, 200, 200), start=1):  # 400 is not tried again
            receiver.status = status
            with tracer.request(None):
                pass
            deadline = time.monotonic() + 30
            while len(receiver.paths) < count:
                assert time.monotonic() < deadline
                time.sleep(0.005)
    assert [record.message for record in caplog.records] == [
        f"spans are lost: {receiver.url}/v1/traces takes none",
        "spans are sent again; 2 were lost",
    ]


@pytest.mark.parametrize("away", ["refused", "silent"])
def test_closing_does_not_wait_for_a_collector_that_is_away(
    receiver: Receiver, away: str, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setattr(otlp, "CLOSE_SECONDS", 0.2)
    receiver.held.clear()
    tracer = otlp.OtlpTracer(receiver.url if away == "silent" else f"http://127.0.0.1:{free_port}")
    for _ in range(2000):
        with tracer.request(None):
            pass
    closed = threading.Thread(target=tracer.close)
    closed.start()
    closed.join(otlp.EXPORT_SECONDS * 0.9)
    assert not closed.is_alive()
    assert receiver.requests == []


def test_without_an_address_nothing_is_traced_or_imported() -> None:
    tracer = open_tracer(None)
    assert isinstance(tracer, Untraced)
    with tracer.request("nonsense") as span, tracer.span("door", tokens=1) as part:
        part.set(tokens=2)
        part.fail("not_found")
    assert span.trace_id is None
    tracer.close()
    code = (
        "import sys, tokenpriority_service.telemetry.tracing as t; t.open_tracer(None); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_without_the_library_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tokenpriority_service.telemetry.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InvalidSettings, match=r"server\.traces: needs opentelemetry: pip install"):
        tracing.open_tracer("http://127.0.0.1:4318")


def test_a_request_to_a_server_is_traced_by_its_parts(receiver: Receiver, serve: Any) -> None:
    settings = Settings(server=ServerSettings(traces=receiver.url))
    with serve({"reference": FakeEngine()}, settings) as server:
        answer = server.post(
            {"sequences": [{"token_ids": [11, 12, 13]}, {"text": PRIVATE, "id": PRIVATE}]},
            traceparent=f"00-{TRACE}-{CALLER}-01",
            authorization=f"Bearer {PRIVATE}",
        )
        assert answer.status_code == 200
        request_id = answer.headers["x-request-id"]
        server.http.get("/healthz", headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})  # keeps the span of the other
    spans = receiver.spans
    assert set(spans) == {"request", "door", "store", "charge", "queue and engine", "priority"}
    root = spans.pop("request")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, CALLER)
    told = attributes(root)
    assert (told["route"], told["status"], told["request_id"]) == ("/v1/priorities", 200, request_id)
    assert told["tokens"] == 3 + len(PRIVATE.encode())
    for span in spans.values():
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    # Counts, and names of the server's own: neither text nor ids nor the key.
    texts = {value for span in (root, *spans.values()) for value in attributes(span).values() if isinstance(value, str)}
    assert texts == {"/v1/priorities", request_id, "-", "uniform"}
    assert all(isinstance(value, str | int) for span in spans.values() for value in attributes(span).values())
    assert not any(PRIVATE.encode() in request.SerializeToString() for request in receiver.requests)
