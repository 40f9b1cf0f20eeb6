"""The OpenAPI document: complete, and true of this server."""

from __future__ import annotations

from typing import Any

import pytest

from tokenpriority import schema, wire
from tokenpriority.errors import ERROR_TYPES
from tokenpriority.evidence import OPTIONAL_SIGNALS, SIGNALS
from tokenpriority_service.web.openapi import EXAMPLES


@pytest.fixture(scope="module")
def document(server: Any) -> Any:
    return server.http.get("/openapi.json").json()


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


def test_every_reference_is_there(document: Any) -> None:
    names = {ref.removeprefix("#/components/schemas/") for ref in references(document)}
    assert names <= set(document["components"]["schemas"])
    assert {"PriorityRequest", "PriorityResponse", "SequenceItem", "Span", "ErrorResponse", "Limits"} <= names


def test_the_scoring_route_has_both_formats_and_all_errors(document: Any) -> None:
    operation = document["paths"]["/v1/priorities"]["post"]
    for content in (operation["requestBody"]["content"], operation["responses"]["200"]["content"]):
        assert set(content) == {wire.JSON, wire.MSGPACK}
    documented = {status for status in operation["responses"] if status != "200"}
    assert documented == {str(each.status) for each in ERROR_TYPES.values()}
    for name, each in ERROR_TYPES.items():
        assert f"`{name}`" in operation["responses"][str(each.status)]["description"]


def test_the_signals_that_may_be_asked_for_are_listed(document: Any) -> None:
    signals = document["components"]["schemas"]["PriorityRequest"]["properties"]["signals"]["items"]
    assert signals["enum"] == [*SIGNALS, *OPTIONAL_SIGNALS]


def test_every_route_is_there_with_its_answer(document: Any) -> None:
    assert set(document["paths"]) == {
        "/v1/priorities", "/v1/coverage", "/v1/models", "/v1/methods", "/v1/limits", "/v1/usage",
        "/metrics", "/healthz", "/readyz",
    }  # fmt: skip
    for path, operations in document["paths"].items():
        for operation in operations.values():
            format_ = "text/plain" if path == "/metrics" else wire.JSON
            assert operation["responses"]["200"]["content"][format_]["schema"], path
            assert operation["summary"], path


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_valid_and_served(torch_server: Any, document: Any, name: str) -> None:
    shown = document["paths"]["/v1/priorities"]["post"]["requestBody"]["content"][wire.JSON]["examples"][name]
    assert shown["summary"]
    body = wire.encode(shown["value"], wire.JSON)
    wire.decode(body, schema.PriorityRequest, wire.JSON)
    response = torch_server.post(body)
    assert response.status_code == 200, response.text
    errors = [result["error"]["message"] for result in response.json()["results"] if "error" in result]
    # The example's ids are of a larger vocabulary than the test's model.
    assert [error for error in errors if "vocabulary size" not in error] == []


def test_keys_are_documented_as_asked_for_once_there_are_any(server: Any) -> None:
    document = server.http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        keyed = path.startswith("/v1/") or path == "/metrics"
        for operation in operations.values():
            assert operation.get("security") == ([{}, {"key": []}] if keyed else None)
            assert ("401" in operation["responses"]) == keyed


def test_docs_page(server: Any) -> None:
    assert "openapi.json" in server.http.get("/docs").text
