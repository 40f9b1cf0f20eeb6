"""The store in memory: its bytes, and what goes first."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from stores import B, Held, ids, truth, wanted
from tokenpriority_service.store import BLOCK_OVERHEAD, MemoryStore, Wanted


def memory(max_bytes: int) -> Held:
    return Held(MemoryStore(max_bytes))


def cost(tokens: int) -> int:
    return 6 * 4 * tokens + BLOCK_OVERHEAD


def test_a_wider_one_replaces_what_it_covers() -> None:
    whole = ids(2 * B)
    with memory(10**6) as held:
        held.keep(wanted(whole, 10))
        held.keep(wanted(whole, 5, top20=True))
        size = held.store.used_bytes
        assert size == sum(7 * 4 * tokens + BLOCK_OVERHEAD for tokens in (B - 5, B))
        held.keep(wanted(whole, 10, top20=True), wanted(whole, 5))
        assert held.store.used_bytes == size, "what is covered changes nothing"
        # Neither covers the other: the newer stays.
        held.keep(wanted(whole, 1))
        assert held.known(wanted(whole, 5, top20=True)) == 0


def test_the_least_recently_used_goes_first() -> None:
    wishes = [wanted(ids(B, seed)) for seed in range(4)]
    with memory(3 * cost(B - 1)) as held:
        held.keep(*wishes[:3])
        assert held.known(wishes[0]) == B
        held.keep(wishes[3])
        assert [held.known(each) for each in wishes] == [B, 0, B, B]
        assert held.store.used_bytes == 3 * cost(B - 1)


def test_asking_what_is_covered_is_no_use() -> None:
    wishes = [wanted(ids(B, seed)) for seed in range(4)]
    with memory(3 * cost(B - 1)) as held:
        held.keep(*wishes[:3])
        assert held.run(held.store.covered(wishes[:1])) == [B]
        held.keep(wishes[3])
        assert held.run(held.store.covered(wishes)) == [0, B, B, B]


def test_of_one_sequence_the_end_goes_first() -> None:
    long, short = wanted(ids(4 * B)), wanted(ids(B, 1))
    with memory(cost(B - 1) + 3 * cost(B)) as held:
        held.keep(long)
        held.keep(short)
        assert (held.known(long), held.known(short)) == (3 * B, B)
        assert held.store.used_bytes == 2 * cost(B - 1) + 2 * cost(B)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 200), st.integers(1, 200), st.booleans()), max_size=40))
def test_it_never_holds_more_than_its_bytes(steps: list[tuple[int, int, int, bool]]) -> None:
    with memory(9000) as held:
        for seed, length, score_from, top20 in steps:
            held.keep(wanted(ids(length, seed), min(score_from, length), top20))
            used = held.store.used_bytes
            assert used <= 9000
            assert (used > 0) == (len(held.store) > 0)
            blocks = held.store._blocks.values()
            assert used == sum(len(each.evidence) + BLOCK_OVERHEAD for each in blocks)


def test_the_bytes_counted_are_at_least_those_taken() -> None:
    wishes = [wanted(ids(512, seed)) for seed in range(300)]
    rows = truth(wishes[0])
    with memory(10**9) as held:
        held.run(held.store.covered([]))
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            copies = [(Wanted(tuple(bytes(key[:31]) + b"!" for key in w.keys), 512, 1), rows) for w in wishes]
            held.run(held.store.keep(copies))
            del copies
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert 0.8 * held.store.used_bytes < taken <= held.store.used_bytes
