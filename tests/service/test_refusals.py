"""What a server of a certain kind refuses: by its limits, for want of a tokenizer or a template, or by a bug."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from refusals import check
from tokenpriority import wire
from tokenpriority_service.configuration.settings import ServerSettings, Settings

GOOD = {"id": "good", "token_ids": [1, 2, 3]}
TALK = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": " yes "}]


@pytest.fixture(scope="module")
def small(serve: Callable[..., contextlib.AbstractContextManager[Any]], make_probe: Callable[..., Any]) -> Any:
    from tokenpriority_service.engines.fake import FakeEngine

    limits = ServerSettings(max_body_bytes=2000, max_sequences=3, max_request_tokens=20, max_queued_tokens=40)
    with serve({"reference": FakeEngine()}, Settings(server=limits)) as server:
        yield server


def test_too_large(small: Any) -> None:
    check(small.post({"sequences": [GOOD] * 4}), 413, "too_large", ["sequences", "at most 3", "got 4"])
    check(small.post({"sequences": [{"token_ids": [1] * 21}]}), 413, "too_large", ["tokens", "at most 20", "got 21"])
    assert small.post({"sequences": [{"token_ids": [1] * 20}]}).status_code == 200
    big = wire.encode({"sequences": [GOOD]}, wire.JSON) + b" " * 2000
    check(small.post(big), 413, "too_large", ["body", "at most 2000", f"got {len(big)}"])
    assert small.post({"sequences": [GOOD]}).status_code == 200


def test_a_streamed_body_is_cut_off_at_the_limit(small: Any) -> None:
    def endless() -> Any:
        for _ in range(100):
            yield b" " * 1000

    response = small.http.post("/v1/priorities", content=endless(), headers={"content-type": wire.JSON})
    check(response, 413, "too_large", ["body", "at most 2000"])


def test_text_for_a_model_without_tokenizer(serve: Any, probe: Any) -> None:
    class IdsOnly(type(probe)):  # type: ignore[misc]
        tokenizer = None

    with serve({"reference": IdsOnly(probe.inner)}) as server:
        text, ids = server.score({"text": "a"}, GOOD)
        assert "has no tokenizer; send token_ids" in text["error"]["message"]
        assert ids["priorities"] == [0, 1, 1]
        assert server.http.get("/v1/models").json()["models"][0]["tokenizer"] == ""


def test_messages_without_a_chat_template(serve: Any, probe: Any, make_tokenizer: Callable[..., Any]) -> None:
    class Plain(type(probe)):  # type: ignore[misc]
        tokenizer = make_tokenizer(None)

    with serve({"reference": Plain(probe.inner)}) as server:
        result = server.score({"messages": TALK})[0]
        assert "messages: the model has no chat template" in result["error"]["message"]


def test_models_that_do_not_fit_each_other(serve: Any, probe: Any, make_tokenizer: Callable[..., Any]) -> None:
    class Other(type(probe)):  # type: ignore[misc]
        tokenizer = make_tokenizer(None)

    with serve({"reference": probe, "base": Other(probe.inner)}) as server:
        body = {"sequences": [GOOD], "method": {"name": "token_cleaning"}}
        check(server.post(body), 422, "invalid_parameter", ["method.params.base", "tokenizer", "'base'"])


def test_a_bug_is_an_internal_error_with_a_request_id(
    serve: Any, probe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve({"reference": probe}) as server:

        def broken() -> Any:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr(server.service, "limits", broken)
        response = server.http.get("/v1/limits")
        check(response, 500, "internal_error", [])
        assert "secret" not in response.text
        bug = next(record for record in caplog.records if record.message == "a bug")
        assert bug.fields["request_id"] == response.headers["x-request-id"]  # type: ignore[attr-defined]
        assert bug.exc_info is not None
        assert server.http.get("/healthz").status_code == 200
