"""What schemathesis must be told of this contract: how msgpack is written and read, and that a bad sequence is refused
within an answer of status 200. Loaded by schemathesis itself (SCHEMATHESIS_HOOKS)."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection

MSGPACK = "application/x-msgpack"


@schemathesis.serializer(MSGPACK)
def write(_ctx: Any, value: Any) -> bytes:
    return msgspec.msgpack.encode(_bounded(value))


@schemathesis.deserializer(MSGPACK)
def read(_ctx: Any, response: schemathesis.Response) -> Any:
    return _decoded(response)


@schemathesis.check
def invalid_data_is_refused(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> bool | None:
    """`negative_data_rejection`, by the request's status or by the error of a sequence."""
    if response.status_code == 200 and case.operation.path in ("/v1/priorities", "/v1/coverage"):
        body = _decoded(response) if MSGPACK in response.headers["content-type"][0] else response.json()
        if any("error" in result for result in body["results"]):
            return None
    return negative_data_rejection(ctx, response, case)


def _decoded(response: schemathesis.Response) -> Any:
    return _as_json(msgspec.msgpack.decode(response.content))


def _as_json(value: Any) -> Any:
    """As the document describes it: binary data as base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    return [_as_json(each) for each in value] if isinstance(value, list) else value


def _bounded(value: Any) -> Any:
    """Integers as msgpack can carry them; those beyond 64 bits are numbers of JSON only."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value)
    if isinstance(value, dict):
        return {key: _bounded(each) for key, each in value.items()}
    return [_bounded(each) for each in value] if isinstance(value, list) else value
