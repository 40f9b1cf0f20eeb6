"""The evidence store, alone and behind the server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority import wire
from tokenpriority_service.settings import Settings, StoreSettings
from tokenpriority_service.store import ENTRY_OVERHEAD, MemoryStore, Wanted, content_key


def rows(length: int, score_from: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    out = np.random.default_rng(seed).random((6, length), np.float32)
    out[:, :score_from] = np.nan
    return out


def find(store: MemoryStore, key: bytes, score_from: int) -> Any:
    return asyncio.run(store.find([Wanted(key, score_from)]))[0]


def keep(store: MemoryStore, key: bytes, score_from: int, value: Any) -> None:
    asyncio.run(store.keep([(Wanted(key, score_from), value)]))


def test_the_key_covers_fingerprint_and_every_id() -> None:
    ids = np.array([1, 2, 3], np.uint32)
    keys = {content_key("a", ids), content_key("b", ids), content_key("a", ids[:2]), content_key("a", ids[::-1])}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
    assert content_key("a", ids.astype(">u4")) == content_key("a", ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 8)), max_size=40))
def test_hits_are_exactly_what_was_kept_widely_enough(steps: list[tuple[bool, int, int]]) -> None:
    """Against a dictionary that never forgets: a hit needs stored_from <= wanted, and has the engine's bytes."""
    store = MemoryStore(10**6)
    widest: dict[bytes, int] = {}
    for is_keep, number, score_from in steps:
        key = bytes([number])
        if is_keep:
            keep(store, key, score_from, rows(8, score_from, seed=number))
            widest[key] = min(widest.get(key, 99), score_from)
            continue
        hit = find(store, key, score_from)
        if widest.get(key, 99) <= score_from:
            expected = rows(8, 0, seed=number)
            expected[:, :score_from] = np.nan
            assert hit.tobytes() == expected.tobytes()
        else:
            assert hit is None


def test_the_least_recently_used_goes_first() -> None:
    cost = 6 * 10 * 4 + ENTRY_OVERHEAD
    store = MemoryStore(3 * cost)
    for number in range(3):
        keep(store, bytes([number]), 0, rows(10, 0))
    assert find(store, b"\0", 0) is not None
    keep(store, b"\3", 0, rows(10, 0))
    assert [find(store, bytes([n]), 0) is not None for n in range(4)] == [True, False, True, True]
    assert store.used_bytes == 3 * cost


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(0, 40)), max_size=40))
def test_it_never_holds_more_than_its_bytes(steps: list[tuple[int, int, int]]) -> None:
    store = MemoryStore(3000)
    for number, length, score_from in steps:
        keep(store, bytes([number, length]), min(score_from, length), rows(length, min(score_from, length)))
        assert store.used_bytes <= 3000
        assert (store.used_bytes > 0) == (len(store) > 0)


def test_an_entry_does_not_hold_the_engines_batch_alive() -> None:
    store = MemoryStore(10**6)
    batch = np.ones((64, 6, 10), np.float32)
    keep(store, b"k", 0, batch[3])
    batch[3] = 7
    assert find(store, b"k", 0).max() == 1


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
    with serve({"reference": probe}, Settings(store=StoreSettings(max_bytes=0))) as server:
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
