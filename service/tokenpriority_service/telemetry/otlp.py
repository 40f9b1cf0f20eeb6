"""The tracer that sends spans to an OpenTelemetry collector.

Knows OpenTelemetry; imported only when traces are asked for. A collector that is away costs spans and two lines in the
log, never a request: spans wait in a bounded queue and a thread sends them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tokenpriority_service.telemetry.tracing import Attribute, Span

EXPORT_SECONDS = 3
"""Most that one attempt to send takes, retries included."""
CLOSE_SECONDS = 3.0
"""Most that closing waits for what is left to be sent."""

logger = logging.getLogger(__name__)


class OtlpTracer:
    """See `tracing.Tracer`. Headers for the collector are OpenTelemetry's `OTEL_EXPORTER_OTLP_HEADERS`."""

    def __init__(self, collector: str) -> None:
        # It would tell each failure with a traceback; `_Told` tells the first.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = _Told(collector.rstrip("/") + "/v1/traces")
        self._processor = BatchSpanProcessor(self._exporter)
        resource = Resource.create({"service.name": "tokenpriority", "service.version": version("tokenpriority")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("tokenpriority_service")
        self._propagator = TraceContextTextMapPropagator()

    def request(self, traceparent: str | None) -> AbstractContextManager[Span]:
        """See Tracer."""
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        parent = self._propagator.extract(carrier, context.Context())
        return _current(self._tracer.start_span("request", parent, trace.SpanKind.SERVER))

    def span(self, name: str, **attributes: Attribute) -> AbstractContextManager[Span]:
        """See Tracer."""
        return _current(self._tracer.start_span(name, attributes=_present(attributes)))

    def close(self) -> None:
        """See Tracer."""
        closing = threading.Thread(target=self._processor.shutdown, name="close traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        self._exporter.give_up()


@contextlib.contextmanager
def _current(span: trace.Span) -> Iterator[Span]:
    """`span` as the one around what happens within."""
    handle = _Handle(span)
    # An exception's message may quote what was sent: OpenTelemetry is not to record it.
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield handle
        except BaseException as error:
            handle.fail(type(error).__name__)
            raise


class _Handle:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def trace_id(self) -> str | None:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def set(self, **attributes: Attribute) -> None:
        self._span.set_attributes(_present(attributes))

    def fail(self, error: str | None) -> None:
        self._span.set_status(trace.StatusCode.ERROR, error)


class _Told(SpanExporter):
    """Sends spans, and logs one line when that begins to fail and one when it works again."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._exporter = OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS)
        self._lost = 0
        self._stopped = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        if not self._stopped:
            with contextlib.suppress(Exception):  # whatever it is, the spans are lost
                result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                logger.warning("spans are lost: %s takes none", self._endpoint)
            self._lost += len(spans)
        elif self._lost:
            logger.warning("spans are sent again; %d were lost", self._lost)
            self._lost = 0
        return result

    def give_up(self) -> None:
        """Lose what is not sent yet."""
        self._stopped = True
        self.shutdown()

    def shutdown(self) -> None:
        """Interrupt an attempt that is waiting for its next try."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _present(attributes: dict[str, Attribute]) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in attributes.items() if value is not None}
