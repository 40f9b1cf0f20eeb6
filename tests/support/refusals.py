"""What an answer that refuses a request looks like."""

from __future__ import annotations

import httpx


def check(response: httpx.Response, status: int, kind: str, words: list[str]) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (status, kind), error
    assert error["request_id"] == response.headers["x-request-id"]
    missing = [word for word in words if word not in error["message"]]
    assert not missing, error["message"]
