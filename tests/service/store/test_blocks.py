"""Keys of content."""

from __future__ import annotations

import hashlib

from stores import B, ids
from tokenpriority_service.store import content_keys


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


def test_keys_are_those_of_a_plain_digest() -> None:
    """Databases outlive the program: these must never change by accident."""
    whole = ids(B + 1)
    digest = hashlib.blake2b(b"print\0" + whole.astype("<u4").tobytes(), digest_size=32).digest()
    assert content_keys("print", whole)[1] == digest


def test_contents_under_different_salts_have_nothing_in_common() -> None:
    whole = ids(3 * B)
    salts = ["", "a", "b", "a\0", "ab", "x" * 200, "x" * 201]
    keys = [set(content_keys("f", whole, salt)) for salt in salts]
    assert len(set().union(*keys)) == 3 * len(salts)
    assert content_keys("f", whole, "") == content_keys("f", whole)
    # What a fingerprint ends with is no salt, nor the other way round.
    assert not set(content_keys("fa", whole)) & set(content_keys("f", whole, "a"))
