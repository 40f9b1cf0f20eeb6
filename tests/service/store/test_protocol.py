"""What every evidence store does, in memory or in a database."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores import B, Held, ids, wanted
from tokenpriority_service.store import MemoryStore

Step = tuple[bool, int, int, int, bool]
examples = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 2), st.integers(1, 4 * B), st.integers(1, 4 * B), st.booleans()),
        max_size=15,
    )
)
def test_what_is_known_is_what_was_kept_without_a_gap(held: Held, steps: list[Step]) -> None:
    """Against a dictionary of blocks that never forgets. Three sequences share their first 100 tokens.

    A memory holds one variant of a block, a table every one.
    """
    fingerprint = f"example {next(examples)}"
    sequences = [np.concatenate([ids(100), ids(4 * B - 100, seed)]) for seed in (1, 2, 3)]
    kept: dict[bytes, list[tuple[int, bool]]] = {}
    for is_keep, which, length, score_from, top20 in steps:
        wish = wanted(sequences[which][:length], min(score_from, length), top20, fingerprint)
        starts = {n: max(0, wish.score_from - n * B) for n in range(wish.score_from // B, len(wish.keys))}

        def is_known(key: bytes, start: int, top20: bool = top20) -> bool:
            return any(first <= start and having >= top20 for first, having in kept.get(key, ()))

        if is_keep:
            held.keep(wish)
            for number, start in starts.items():
                key = wish.keys[number]
                if not is_known(key, start):
                    others = [] if isinstance(held.store, MemoryStore) else kept.get(key, [])
                    kept[key] = [*others, (start, top20)]
        elif wish.score_from < length:
            run = itertools.takewhile(lambda n: is_known(wish.keys[n], starts[n]), starts)  # noqa: B023  # used here
            assert held.known(wish) == max((min((n + 1) * B, length) for n in run), default=0)


def test_a_beginning_is_known_to_whoever_shares_it(held: Held) -> None:
    prompt = ids(2 * B + 20)
    one, two = (np.concatenate([prompt, ids(B, seed)]) for seed in (1, 2))
    held.keep(wanted(one))
    assert held.known(wanted(one)) == len(one)
    assert held.known(wanted(two)) == 2 * B
    assert held.known(wanted(two, 2 * B - 1)) == 2 * B
    assert held.known(wanted(two, 2 * B)) == 0
    assert held.known(wanted(one[: 2 * B])) == 2 * B, "a shorter one is known whole where it ends with a block"
    assert held.known(wanted(one[: 2 * B + 1])) == 2 * B


def test_a_wider_one_answers_a_narrower_wish(held: Held) -> None:
    whole = ids(2 * B)
    held.keep(wanted(whole, 10))
    assert held.known(wanted(whole, 9)) == 0
    held.keep(wanted(whole, 5, top20=True))
    for score_from, top20 in ((5, True), (5, False), (B + 3, True)):
        assert held.known(wanted(whole, score_from, top20)) == 2 * B
    held.keep(wanted(whole, 10, top20=True), wanted(whole, 5))
    assert held.known(wanted(whole, 5, top20=True)) == 2 * B
    held.keep(wanted(whole, 1))
    assert held.known(wanted(whole, 1)) == 2 * B
    assert held.known(wanted(whole, 1, top20=True)) == 0
    assert held.known(wanted(whole, B, top20=True)) == 2 * B, "of the block that lost nothing"


def test_many_are_found_at_once(held: Held) -> None:
    wishes = [wanted(ids(1 + 97 * seed, seed), 1 + seed, top20=seed % 3 == 0) for seed in range(1, 40)]
    held.keep(*wishes)
    other = wanted(ids(50, 99))
    found = held.run(held.store.find([*wishes, other, *wishes]))
    assert [rows.shape for rows in found] == [(w.rows, w.length) for w in wishes] + [(6, 0)] + [
        (w.rows, w.length) for w in wishes
    ]
    assert held.run(held.store.covered([*wishes, other])) == [*(w.length for w in wishes), 0]
    assert held.run(held.store.find([])) == held.run(held.store.covered([])) == []


def test_the_store_does_not_hold_the_engines_batch_alive(held: Held) -> None:
    batch = np.ones((64, 6, 10), np.float32)
    wish = wanted(ids(10))
    held.run(held.store.keep([(wish, batch[3])]))
    held.settle()
    batch[3] = 7
    assert np.nanmax(held.find(wish)) == 1


@pytest.mark.parametrize("length", [2, B - 1, B, B + 1, 5000])
def test_any_length_is_found_whole(held: Held, length: int) -> None:
    wish = wanted(ids(length, length))
    held.keep(wish)
    assert held.known(wish) == length
