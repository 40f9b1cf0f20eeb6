"""Servers that are not what they must be: refused at load, by the name of the setting that would have to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tokenpriority_service.engines.remote import RemoteEngine

Open = Callable[..., RemoteEngine]


def test_something_that_is_no_vllm(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    front = open_front(generating)
    front.behave = lambda exchange: kit.reply("<html>welcome</html>")
    with pytest.raises(ValueError, match=r"urls: .*is no vLLM server"):
        open_engine(front)
    front.behave = lambda exchange: kit.reply({"detail": "Not Found"}, 404)
    with pytest.raises(ValueError, match=r"urls: .*HTTP 404: Not Found"):
        open_engine(front)


def test_a_pooling_server_without_the_plugin(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    front = open_front(generating)
    refusal = kit.reply({"error": {"message": "Unsupported task: 'token_classify'"}}, 400)
    front.behave = lambda exchange: refusal if exchange.path == "/pooling" else exchange.forward()
    with pytest.raises(ValueError, match=r"urls: .*not with the tokenpriority plugin.*Unsupported task"):
        open_engine(front)


def test_numbers_that_are_not_log_probabilities(kit: Any, generating: Any, open_front: Any, open_engine: Open) -> None:
    """As `--logprobs-mode raw_logits` gives them."""

    def raw(exchange: Any) -> Any:
        answer = exchange.forward()
        if "prompt_logprobs" not in exchange.sent:
            return answer
        body = answer.json()
        for position in body["choices"][0]["prompt_logprobs"][1:]:
            for entry in position.values():
                entry["logprob"] += 20.0
        return kit.reply(body)

    front = open_front(generating)
    front.behave = raw
    with pytest.raises(ValueError, match=r"urls: .*its numbers are not log-probabilities"):
        open_engine(front)
