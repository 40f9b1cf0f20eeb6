"""Spans: which part of a request took how long.

Knows what a tracer does and how one is opened. Without `[server] traces` nothing is measured and nothing imported; with
it, otlp.py sends the spans away. An attribute is a count or a name of the server's (route, team, model, status): never
token content, never a key.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Protocol

from tokenpriority_service.configuration.settings_errors import InvalidSettings

Attribute = str | int | float | bool | None
"""None is left out."""


class Span(Protocol):
    """A part of a request, while it lasts."""

    @property
    def trace_id(self) -> str | None:
        """Of the whole trace, 32 hex digits, for the log; None if nothing is traced."""

    def set(self, **attributes: Attribute) -> None:
        """Say more of it."""

    def fail(self, error: str | None) -> None:
        """It failed; `error` is a type of error, never a message: those may quote what was sent."""


class Tracer(Protocol):
    """Where spans go. Nothing here raises or waits for the network, save `close`."""

    def request(self, traceparent: str | None) -> AbstractContextManager[Span]:
        """The span `request`, child of the caller's W3C `traceparent` if that is valid, else a trace of its own. A
        caller that says it does not sample its trace is taken at its word: the spans go nowhere."""

    def span(self, name: str, **attributes: Attribute) -> AbstractContextManager[Span]:
        """A part of the span around it, in the same task, in a task made within it or in `asyncio.to_thread`. An
        exception that leaves it marks it as failed, by type alone."""

    def close(self) -> None:
        """Send what is left, a few seconds at most; blocks."""


def open_tracer(collector: str | None) -> Tracer:
    """A tracer that sends to `{collector}/v1/traces` (OTLP over HTTP), or, with None, the one that does nothing.

    Raises InvalidSettings if OpenTelemetry is not installed.
    """
    if collector is None:
        return Untraced()
    try:
        from tokenpriority_service.telemetry.otlp import OtlpTracer
    except ImportError as error:
        raise InvalidSettings(f'server.traces: needs {error.name}: pip install "tokenpriority[traces]"') from None
    return OtlpTracer(collector)


class Untraced:
    """The tracer that does nothing."""

    def request(self, traceparent: str | None) -> AbstractContextManager[Span]:  # noqa: ARG002  # the protocol's
        """See Tracer."""
        return contextlib.nullcontext(_NOTHING)

    def span(self, name: str, **attributes: Attribute) -> AbstractContextManager[Span]:  # noqa: ARG002
        """See Tracer."""
        return contextlib.nullcontext(_NOTHING)

    def close(self) -> None:
        """See Tracer."""


class _NoSpan:
    trace_id = None

    def set(self, **attributes: Attribute) -> None:
        pass

    def fail(self, error: str | None) -> None:
        pass


_NOTHING = _NoSpan()
