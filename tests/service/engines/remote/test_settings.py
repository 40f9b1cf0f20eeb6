"""When a remote engine refuses to load, and that it says which setting is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tokenpriority_service.engines import load_engine
from tokenpriority_service.engines.remote import RemoteEngine

Open = Callable[..., RemoteEngine]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"urls": []}, "urls: expected a list of at least one URL"),
        ({"urls": "http://a"}, "urls: expected a list of at least one URL"),
        ({"urls": ["ftp://a"]}, "urls: must start with http:// or https://, got 'ftp://a'"),
        ({"urls": ["http://a/v1", "http://a"]}, "urls: every replica is listed once, 'http://a' is there 2 times"),
        ({"max_concurrent": 0}, "max_concurrent: expected at least 1, got 0"),
        ({"retries": -1}, "retries: expected at least 0, got -1"),
        ({"timeout": 0.0}, "timeout: expected more than 0 seconds, got 0"),
        ({"timeout": float("nan")}, "timeout: expected more than 0 seconds, got nan"),
        ({"tokenizer": "/nowhere"}, "tokenizer: "),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_engine("remote", model="tiny", **{"urls": ["http://127.0.0.1:1"], **settings})


def test_nobody_there(free_port: int) -> None:
    with pytest.raises(ValueError, match=r"urls: none answered within 0\.3 s: .*ConnectError"):
        RemoteEngine("tiny", urls=[f"http://127.0.0.1:{free_port}"], timeout=0.3)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"api_key": "wrong"}, "api_key: .*HTTP 401: Unauthorized"),
        ({"api_key": None}, "api_key: .*HTTP 401: Unauthorized"),
        ({"max_model_len": 128}, "max_model_len: expected 2 to 127 tokens, got 128"),
        ({"vocab_size": 301}, "vocab_size: .*expected at most 300, got 301"),
    ],
)
def test_what_the_server_does_not_have(
    generating: Any, open_engine: Open, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        open_engine(generating, **settings)


def test_another_models_name(kit: Any, generating: Any) -> None:
    with pytest.raises(ValueError, match=r"model: .*serves 'tiny', not 'large'"):
        RemoteEngine("large", urls=[generating.url], api_key=kit.key)


def test_a_smaller_vocabulary_may_be_asked_for(generating: Any, open_engine: Open) -> None:
    assert open_engine(generating, vocab_size=100).info.vocab_size == 100


def test_a_pooling_server_needs_to_be_told_its_vocabulary(pooling: Any, open_engine: Open) -> None:
    with pytest.raises(ValueError, match=r"vocab_size: .*a pooling server does not tell it"):
        open_engine(pooling)
