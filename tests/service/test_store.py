"""The evidence store behind the server; by itself it is tested in `store/`."""

from __future__ import annotations

from typing import Any

import pytest

from tokenpriority import wire
from tokenpriority_service.configuration.settings import Settings, StoreSettings


def test_a_hit_gives_identical_bytes_and_says_so(serve: Any, probe: Any) -> None:
    with serve({"reference": probe}) as server:
        body = {
            "sequences": [{"token_ids": list(range(50))}, {"token_ids": [9, 8, 7], "score_from": 2}],
            "method": {"name": "prift_prob"},
            "signals": ["entropy", "rank"],
        }
        first, second = (server.post(body, accept=wire.MSGPACK) for _ in range(2))
        one, two = (wire.decode(r.content, dict) for r in (first, second))
        assert [r.pop("cached") for r in one["results"]] == [False, False]
        assert [r.pop("cached") for r in two["results"]] == [True, True]
        assert one["results"] == two["results"]
        assert (one["usage"]["cached_tokens"], two["usage"]["cached_tokens"]) == (0, 53)
        assert second.headers["x-tokenpriority-cached-tokens"] == "53"
        assert two["usage"]["engine_ms"] == 0
        assert len(probe.jobs) == 2


def test_a_narrower_request_hits_and_a_wider_one_replaces(serve: Any, probe: Any) -> None:
    ids = list(range(20))
    with serve({"reference": probe}) as server:

        def ask(score_from: int) -> tuple[bool, list[Any]]:
            result = server.score({"token_ids": ids, "score_from": score_from})[0]
            return result["cached"], result["logprobs"]

        cached, narrow = ask(10)
        assert not cached
        cached, wide = ask(5)
        assert not cached
        assert [x is None for x in wide] == [i < 5 for i in range(20)]
        assert wide[10:] == narrow[10:]
        assert ask(10) == (True, narrow)
        assert ask(7) == (True, [None] * 7 + wide[7:])
        assert ask(0)[0] is False
        assert [job.score_from for job in probe.jobs] == [10, 5, 1]


def test_a_store_of_no_bytes_keeps_nothing(serve: Any, probe: Any) -> None:
    with serve({"reference": probe}, Settings(store=StoreSettings(max_bytes=0, memory_bytes=0))) as server:
        for _ in range(2):
            assert server.score({"token_ids": [1, 2, 3]})[0]["cached"] is False
        assert len(probe.jobs) == 2


@pytest.mark.parametrize("model", ["reference", "base"])
def test_models_do_not_share_evidence(torch_server: Any, model: str) -> None:
    ids = {"reference": [3, 1, 4, 1, 5], "base": [2, 7, 1, 8, 2]}[model]
    other = {"reference": "base", "base": "reference"}[model]
    assert torch_server.score({"token_ids": ids}, model=model)[0]["cached"] is False
    assert torch_server.score({"token_ids": ids}, model=other)[0]["cached"] is False
    assert torch_server.score({"token_ids": ids}, model=model)[0]["cached"] is True
