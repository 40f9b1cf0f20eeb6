"""What is remembered of a request for its headers and its line in the log: never token content, never keys."""

from __future__ import annotations

import math
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.types import Scope

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
CLIENT_GONE = 499
"""Status in the log of a request whose client hung up before the answer."""


@dataclass(slots=True)
class Record:
    """One request."""

    request_id: str
    """The client's own x-request-id if it is sane, else a new one."""
    started: float = field(default_factory=time.monotonic)
    team: str | None = None
    status: int = CLIENT_GONE
    error: str | None = None
    """Type of the error it was answered with."""
    tokens: int | None = None
    cached_tokens: int | None = None
    quota: tuple[int, int, float] | None = None
    """The team's tokens per minute, how many are left, and the seconds until all are there again."""
    trace_id: str | None = None
    """Of its trace, where the server writes traces."""

    @property
    def seconds(self) -> float:
        """Since it arrived."""
        return time.monotonic() - self.started

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers that every answer carries, as far as they are known."""
        limit, left, reset = self.quota or (None, None, None)
        values = {
            "x-request-id": self.request_id,
            "x-tokenpriority-tokens": self.tokens,
            "x-tokenpriority-cached-tokens": self.cached_tokens,
            "x-ratelimit-limit-tokens": limit,
            "x-ratelimit-remaining-tokens": left,
            "x-ratelimit-reset-tokens": None if reset is None else math.ceil(reset),
        }
        return [(name.encode(), str(value).encode()) for name, value in values.items() if value is not None]

    def route(self, scope: Scope) -> str | None:
        """The route's own path; what was asked for in vain may hold anything."""
        return getattr(scope.get("route"), "path", None)

    def fields(self, scope: Scope) -> dict[str, str | int | float | None]:
        """The request's line in the log."""
        fields: dict[str, str | int | float | None] = {
            "request_id": self.request_id,
            "team": self.team,
            "method": scope["method"],
            "route": self.route(scope),
            "status": self.status,
            "error": self.error,
            "tokens": self.tokens,
            "cached_tokens": self.cached_tokens,
            "ms": round(1000 * self.seconds, 3),
        }
        return fields if self.trace_id is None else {**fields, "trace_id": self.trace_id}


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header, its name in lower case."""
    return next((value.decode("latin-1") for each, value in scope["headers"] if each == name), None)


def begin(scope: Scope) -> Record:
    """The record of a request that just arrived; kept in its scope."""
    given = header(scope, b"x-request-id") or ""
    record = Record(given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex)
    scope.setdefault("state", {})["record"] = record
    return record


def of(scope: Scope) -> Record:
    """The record that `begin` made for this request."""
    record: Record = scope["state"]["record"]
    return record
