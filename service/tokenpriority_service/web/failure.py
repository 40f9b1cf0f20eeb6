"""An error -> the response that says so, in one shape everywhere: {"error": {"type", "message", "request_id"}}."""

from __future__ import annotations

import math

from fastapi import Request, Response

from tokenpriority import wire
from tokenpriority.errors import ApiError, EngineFault, InvalidRequest
from tokenpriority_service.web import media, record

RETRY_SECONDS = 1.0
"""Retry-After of a 429 or an engine's fault that names no time. A 503 without one will not be over by waiting: a model
that cannot be loaded."""


def failure(request: Request, error: ApiError) -> Response:
    """The response to a request that failed, in the format the client accepts (JSON if it accepts neither)."""
    about = record.of(request.scope)
    about.error = error.type
    headers = {}
    if error.status == 429 or error.retry_after is not None or isinstance(error, EngineFault):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or RETRY_SECONDS)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    try:
        media_type = answer_type(request)
    except InvalidRequest:
        media_type = wire.JSON
    return Response(wire.encode_error(error, about.request_id, media_type), error.status, headers, media_type)


def answer_type(request: Request) -> str:
    """The format of the answer: what the client accepts; without a preference, the format of its body; else JSON."""
    sends_msgpack = request.headers.get("content-type", "").split(";")[0].strip().lower() == wire.MSGPACK
    return media.answer_type(request.headers.get("accept"), wire.MSGPACK if sends_msgpack else wire.JSON)
