"""Keys, and what the log says."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from tokenpriority_service.configuration.settings import Settings, TeamSettings
from tokenpriority_service.telemetry.log import JsonFormatter

KEYS = {"alpha": "key of alpha", "beta": "ключ"}
BODY = {"sequences": [{"token_ids": [11, 12, 13]}]}


@pytest.fixture(scope="module")
def keyed(serve: Any) -> Any:
    from tokenpriority_service.engines.fake import FakeEngine

    teams = {name: TeamSettings(key_sha256=hashlib.sha256(key.encode()).hexdigest()) for name, key in KEYS.items()}
    with serve({"reference": FakeEngine()}, Settings(teams=teams)) as server:
        yield server


def lines_of(caplog: pytest.LogCaptureFixture, count: int, wait_until: Callable[..., None]) -> list[dict[str, Any]]:
    """The lines of so many requests; each is written just after its answer."""

    def written() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.message == "request"]

    wait_until(lambda: len(written()) == count, f"{count} lines")
    return [json.loads(JsonFormatter().format(record)) for record in written()]


def test_each_teams_key_opens(keyed: Any, caplog: pytest.LogCaptureFixture, wait_until: Callable[..., None]) -> None:
    caplog.set_level("INFO", "tokenpriority_service")
    for scheme, key in (("Bearer", KEYS["alpha"]), ("bearer", KEYS["beta"])):
        header = f"{scheme} {key}".encode()
        response = keyed.http.get("/v1/models", headers=[(b"authorization", header)])
        assert response.status_code == 200
    assert [line["team"] for line in lines_of(caplog, 2, wait_until)] == ["alpha", "beta"]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic key of alpha", "key of alpha"])
@pytest.mark.parametrize("path", ["models", "methods", "limits", "usage", "priorities", "coverage", "../metrics"])
def test_without_a_known_key_nothing_is_told(keyed: Any, path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    verb = "POST" if path in ("priorities", "coverage") else "GET"
    response = keyed.http.request(verb, f"/v1/{path}", headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "unauthorized"
    assert "Authorization" in response.json()["error"]["message"]
    assert response.headers["www-authenticate"] == "Bearer"
    assert keyed.service.models.get("reference").engine.info.fingerprint not in response.text


def test_health_needs_no_key(keyed: Any) -> None:
    assert keyed.http.get("/healthz").status_code == 200
    assert keyed.http.get("/readyz").status_code == 200


def test_one_line_per_request_without_content_or_keys(
    keyed: Any, caplog: pytest.LogCaptureFixture, wait_until: Callable[..., None]
) -> None:
    caplog.set_level("INFO", "tokenpriority_service")
    key = {"authorization": f"Bearer {KEYS['alpha']}"}
    ids = list(range(100, 130))
    keyed.post({"sequences": [{"token_ids": ids}, {"text": "a private text"}]}, **{**key, "x-request-id": "r1"})
    keyed.post({"sequences": [{"token_ids": ids, "id": "secret-id"}], "model": "private"}, **key)
    keyed.http.get("/private/path", headers=key)
    lines = lines_of(caplog, 3, wait_until)
    assert [(line["route"], line["status"], line["error"], line["team"]) for line in lines] == [
        ("/v1/priorities", 200, None, "alpha"),
        ("/v1/priorities", 404, "not_found", "alpha"),
        (None, 404, "not_found", None),
    ]
    assert lines[0]["request_id"] == "r1"
    assert (lines[0]["tokens"], lines[0]["cached_tokens"]) == (44, 0)
    fields = {"time", "level", "logger", "message", "request_id", "team", "method", "route", "status", "error"}
    assert all(set(line) == fields | {"tokens", "cached_tokens", "ms"} for line in lines)
    assert all(line["ms"] > 0 for line in lines)
    for private in ("private", "secret", KEYS["alpha"]):
        assert private not in json.dumps(lines)


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "broken %s", ("thing",), (type(error), error, None))
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "broken thing"
    assert "two\nlines" in json.loads(line)["traceback"]
