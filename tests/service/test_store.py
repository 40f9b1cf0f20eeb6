"""The evidence store, alone and behind the server."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority import wire
from tokenpriority_service.settings import Settings, StoreSettings
from tokenpriority_service.store import BLOCK_OVERHEAD, BLOCK_TOKENS, MemoryStore, Wanted, content_keys

B = BLOCK_TOKENS


def ids(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 1000, length).astype(np.uint32)


def wanted(token_ids: Any, score_from: int = 1, top20: bool = False) -> Wanted:
    return Wanted(content_keys("f", token_ids), len(token_ids), score_from, top20)


def truth(wish: Wanted, length: int | None = None) -> Any:
    """Evidence that is a function of what the keys cover, NaN before score_from."""
    blocks = [np.random.default_rng(list(key)).random((7, B), np.float32) for key in wish.keys]
    rows = np.concatenate(blocks, axis=1)[: wish.rows, : wish.length if length is None else length]
    rows[:, : wish.score_from] = np.nan
    return rows


def find(store: MemoryStore, wish: Wanted) -> Any:
    return asyncio.run(store.find([wish]))[0]


def keep(store: MemoryStore, *wishes: Wanted) -> None:
    asyncio.run(store.keep([(wish, truth(wish)) for wish in wishes]))


def known(store: MemoryStore, wish: Wanted) -> int:
    """How many leading tokens are known; what is known must be right to the byte."""
    rows = find(store, wish)
    assert rows.tobytes() == truth(wish, rows.shape[1]).tobytes()
    assert rows.shape[1] == 0 or wish.score_from < rows.shape[1] <= wish.length
    return int(rows.shape[1])


def test_keys_follow_model_and_content() -> None:
    whole = ids(3 * B + 5)
    keys = content_keys("a", whole)
    assert len(keys) == len(set(keys)) == 4
    assert {len(key) for key in keys} == {32}
    # The key of a block is the key of all up to its end, wherever it is found.
    for number, key in enumerate(keys, 1):
        assert content_keys("a", whole[: number * B])[-1] == key
    changed = whole.copy()
    changed[B] += 1
    assert [x == y for x, y in zip(keys, content_keys("a", changed), strict=True)] == [True, False, False, False]
    assert not set(keys) & set(content_keys("b", whole))
    assert not set(content_keys("a", whole[:5])) & {*keys, *content_keys("a", whole[:6])}
    assert content_keys("a", whole.astype(">u4")) == keys
    assert len(content_keys("a", whole[:B])) == 1


Step = tuple[bool, int, int, int, bool]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 2), st.integers(1, 4 * B), st.integers(1, 4 * B), st.booleans()),
        max_size=30,
    )
)
def test_what_is_known_is_what_was_kept_without_a_gap(steps: list[Step]) -> None:
    """Against a dictionary of single positions that never forgets. Three sequences share their first 100 tokens."""
    store = MemoryStore(10**7)
    sequences = [np.concatenate([ids(100), ids(4 * B - 100, seed)]) for seed in (1, 2, 3)]
    kept: dict[bytes, tuple[int, bool]] = {}
    for is_keep, which, length, score_from, top20 in steps:
        wish = wanted(sequences[which][:length], min(score_from, length), top20)
        starts = {n: max(0, wish.score_from - n * B) for n in range(wish.score_from // B, len(wish.keys))}
        if is_keep:
            keep(store, wish)
            for number, start in starts.items():
                old = kept.get(wish.keys[number])
                if old is None or not (old[0] <= start and old[1] >= top20):
                    kept[wish.keys[number]] = start, top20
            continue
        expected = 0
        for number, start in starts.items():
            old = kept.get(wish.keys[number])
            if wish.score_from == length or old is None or not (old[0] <= start and old[1] >= top20):
                break
            expected = min((number + 1) * B, length)
        if wish.score_from < length:
            assert known(store, wish) == expected


def test_a_beginning_is_known_to_whoever_shares_it() -> None:
    store = MemoryStore(10**6)
    prompt = ids(2 * B + 20)
    one, two = (np.concatenate([prompt, ids(B, seed)]) for seed in (1, 2))
    keep(store, wanted(one))
    assert known(store, wanted(one)) == len(one)
    assert known(store, wanted(two)) == 2 * B
    assert known(store, wanted(two, 2 * B - 1)) == 2 * B
    assert known(store, wanted(two, 2 * B)) == 0
    assert known(store, wanted(one[: 2 * B])) == 2 * B, "a shorter one is known whole where it ends with a block"
    assert known(store, wanted(one[: 2 * B + 1])) == 2 * B


def test_a_wider_one_answers_a_narrower_wish_and_replaces_it() -> None:
    store = MemoryStore(10**6)
    whole = ids(2 * B)
    keep(store, wanted(whole, 10))
    assert known(store, wanted(whole, 9)) == 0
    keep(store, wanted(whole, 5, top20=True))
    size = store.used_bytes
    for score_from, top20 in ((5, True), (5, False), (B + 3, True)):
        assert known(store, wanted(whole, score_from, top20)) == 2 * B
    keep(store, wanted(whole, 10, top20=True), wanted(whole, 5))
    assert store.used_bytes == size, "what is covered changes nothing"
    # Neither covers the other: the newer stays.
    keep(store, wanted(whole, 1))
    assert known(store, wanted(whole, 1)) == 2 * B
    assert known(store, wanted(whole, 5, top20=True)) == 0
    assert known(store, wanted(whole, B, top20=True)) == 2 * B, "of the block that lost nothing"


def cost(tokens: int) -> int:
    return 6 * 4 * tokens + BLOCK_OVERHEAD


def test_the_least_recently_used_goes_first() -> None:
    store = MemoryStore(3 * cost(B - 1))
    wishes = [wanted(ids(B, seed)) for seed in range(4)]
    keep(store, *wishes[:3])
    assert known(store, wishes[0]) == B
    keep(store, wishes[3])
    assert [known(store, each) for each in wishes] == [B, 0, B, B]
    assert store.used_bytes == 3 * cost(B - 1)


def test_of_one_sequence_the_end_goes_first() -> None:
    store = MemoryStore(cost(B - 1) + 3 * cost(B))
    long, short = wanted(ids(4 * B)), wanted(ids(B, 1))
    keep(store, long)
    keep(store, short)
    assert (known(store, long), known(store, short)) == (3 * B, B)
    assert store.used_bytes == 2 * cost(B - 1) + 2 * cost(B)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 200), st.integers(1, 200), st.booleans()), max_size=40))
def test_it_never_holds_more_than_its_bytes(steps: list[tuple[int, int, int, bool]]) -> None:
    store = MemoryStore(9000)
    for seed, length, score_from, top20 in steps:
        keep(store, wanted(ids(length, seed), min(score_from, length), top20))
        assert store.used_bytes <= 9000
        assert (store.used_bytes > 0) == (len(store) > 0)
        blocks = store._blocks.values()
        assert store.used_bytes == sum(len(each.evidence) + BLOCK_OVERHEAD for each in blocks)


def test_the_bytes_counted_are_at_least_those_taken() -> None:
    wishes = [wanted(ids(512, seed)) for seed in range(300)]
    rows = truth(wishes[0])
    tracemalloc.start()
    try:
        store = MemoryStore(10**9)
        before = tracemalloc.get_traced_memory()[0]
        asyncio.run(
            store.keep([(Wanted(tuple(bytes(key[:31]) + b"!" for key in w.keys), 512, 1), rows) for w in wishes])
        )
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 * store.used_bytes < taken <= store.used_bytes


def test_the_store_does_not_hold_the_engines_batch_alive() -> None:
    store = MemoryStore(10**6)
    batch = np.ones((64, 6, 10), np.float32)
    wish = wanted(ids(10))
    asyncio.run(store.keep([(wish, batch[3])]))
    batch[3] = 7
    assert np.nanmax(find(store, wish)) == 1


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
