"""What happens to every request, whatever its route: an id, one line in the log, and no exception without an answer.

Knows ASGI, and whether the server is draining: then new requests are refused while accepted ones finish.
"""

from __future__ import annotations

import logging

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenpriority.errors import InternalError, Unavailable
from tokenpriority_service.telemetry.metrics import Metrics
from tokenpriority_service.telemetry.tracing import Tracer
from tokenpriority_service.web import record
from tokenpriority_service.web.failure import failure

DRAINING = "the server is draining; it takes no new requests"
RETRY_SECONDS = 1.0
"""`retry_after` while it drains: another replica, or the next process, may be there by then."""
ALWAYS_SERVED = ("/healthz", "/readyz", "/metrics")

TRACED = ("request_id", "team", "route", "status", "tokens", "cached_tokens")
"""What a trace says of a request, of what its line in the log does."""

logger = logging.getLogger(__name__)


class Gate:
    """How many requests are being answered, and whether new ones are still taken."""

    def __init__(self) -> None:
        self.active = 0
        self.draining = False


class Access:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics, tracer: Tracer) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        about = record.begin(scope)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                about.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *about.headers]
            await send(message)

        self._gate.active += 1
        try:
            with self._tracer.request(record.header(scope, b"traceparent")) as span:
                about.trace_id = span.trace_id
                try:
                    await self._pass(scope, receive, send_with_headers)
                except Exception:
                    logger.exception("a bug", extra={"fields": {"request_id": about.request_id}})
                    if not started:
                        error = InternalError("the server failed on this request; its log has the traceback by its id")
                        await failure(Request(scope), error)(scope, receive, send_with_headers)
                finally:
                    fields = about.fields(scope)
                    span.set(**{name: fields[name] for name in TRACED})
                    if about.status >= 500:  # a refusal is an answer
                        span.fail(about.error)
        finally:
            self._gate.active -= 1
            self._metrics.answered(about.route(scope), about.status, about.seconds)
            logger.info("request", extra={"fields": about.fields(scope)})

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._gate.draining and scope["path"] not in ALWAYS_SERVED:
            refusal = failure(Request(scope), Unavailable(DRAINING, retry_after=RETRY_SECONDS))
            refusal.headers["connection"] = "close"
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)
