"""The OpenAPI document: what FastAPI knows of the routes, and the bodies from the msgspec structs of the contract.

Knows the schemas, the examples and which errors a route answers with. Decides nothing: every schema is generated from
`tokenpriority.schema`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tokenpriority import schema, wire
from tokenpriority.errors import ERROR_TYPES

Json = dict[str, Any]

EXAMPLES: dict[str, Json] = {
    "token_ids": {
        "summary": "Token ids; the prompt's tokens cost no lm_head work and get priority 0",
        "value": {
            "method": {"name": "prift_mass", "params": {"tau": 0.5}},
            "signals": ["entropy"],
            "sequences": [
                {"id": "a", "token_ids": [464, 2068, 7586, 21831], "score_from": 2},
                {"id": "b", "token_ids": [464, 2068, 7586], "mask": [0, 0, 1]},
            ],
        },
    },
    "text": {
        "summary": "Text, with a signed label on characters [10, 28)",
        "value": {
            "method": {"name": "prift_prob"},
            "sequences": [
                {"text": "import os\nos.system(command)\n", "spans": [{"start": 10, "end": 28, "priority": -1}]}
            ],
        },
    },
    "messages": {
        "summary": "Messages through the model's chat template; the assistant's tokens are scored",
        "value": {
            "sequences": [
                {
                    "messages": [
                        {"role": "user", "content": "How do I read a file?"},
                        {"role": "assistant", "content": "Use open(path)."},
                    ],
                    "spans": [{"message": 1, "start": 4, "end": 14, "priority": 2}],
                }
            ]
        },
    },
    "prompt_completion": {
        "summary": "Prompt and completion, as two strings (or two lists of messages); the completion is scored",
        "value": {
            "method": {"name": "token_cleaning", "params": {"base": "base", "keep": 0.6}},
            "sequences": [{"prompt": "2 + 2 =", "completion": " 4"}],
        },
    },
}
BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/priorities": schema.PriorityResponse,
    "/v1/coverage": schema.CoverageResponse,
    "/v1/models": schema.ModelList,
    "/v1/methods": schema.MethodList,
    "/v1/limits": schema.Limits,
    "/v1/usage": schema.UsageReport,
}
_KEYED = [401, 403, 422, 500, 503]
ERRORS: dict[str, list[int]] = {
    "/v1/priorities": [400, 401, 403, 404, 413, 422, 429, 500, 503],
    "/v1/coverage": [400, 401, 403, 404, 413, 422, 500, 503],
    "/v1/models": _KEYED,
    "/v1/methods": _KEYED,
    "/v1/limits": _KEYED,
    "/v1/usage": _KEYED,
    "/metrics": _KEYED,
    "/healthz": [500],
    "/readyz": [500, 503],
}
REF = "#/components/schemas/{name}"


def document(app: FastAPI) -> Json:
    """The document of GET /openapi.json. A key is optional in it: a server asks for one once any was made."""
    doc = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, components = msgspec.json.schema_components(
        [schema.PriorityRequest, schema.ErrorResponse, *BODIES.values()], ref_template=REF
    )
    for each in components.values():
        if "description" in each:
            each["description"] = inspect.cleandoc(each["description"])
    doc["components"] = {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    for path, operations in doc["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
    return doc


def provider(app: FastAPI) -> Callable[[], Json]:
    """What FastAPI calls for the document: built once, at the first call."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    return openapi


def _complete(path: str, operation: Json) -> None:
    if path in ("/v1/priorities", "/v1/coverage"):
        ref = _ref(schema.PriorityRequest)
        operation["requestBody"] = {
            "required": True,
            "content": {wire.JSON: {"schema": ref, "examples": EXAMPLES}, wire.MSGPACK: {"schema": ref}},
        }
    body = BODIES.get(path)
    answer = _ref(body) if body is not None else {"type": "object", "properties": {"status": {"type": "string"}}}
    content = {"text/plain": {"schema": {"type": "string"}}} if path == "/metrics" else _both(answer)
    operation["responses"] = {"200": {"description": "OK", "content": content}}
    for status in ERRORS[path]:
        errors = [each for each in ERROR_TYPES.values() if each.status == status]
        text = "\n".join(f"- `{each.type}`: {(each.__doc__ or '').strip()}" for each in errors)
        response: Json = {"description": text, "content": _both(_ref(schema.ErrorResponse))}
        if status in (429, 503):
            response["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
        operation["responses"][str(status)] = response
    if 401 in ERRORS[path]:
        operation["security"] = [{}, {"key": []}]


def _both(answer: Json) -> Json:
    return {media_type: {"schema": answer} for media_type in (wire.JSON, wire.MSGPACK)}


def _ref(struct: type[msgspec.Struct]) -> Json:
    return {"$ref": REF.format(name=struct.__name__)}
