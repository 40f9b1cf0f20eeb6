"""Keys: made, rotated, revoked, and what a stolen table would tell."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from tokenpriority_service.database.database import Database
from tokenpriority_service.database.tables import api_key
from tokenpriority_service.teams import keys
from tokenpriority_service.teams.keys import KeyRefused, all_keys, any_key, create, revoke, rotate


def rows(database: Database) -> list[Any]:
    return list(database.read_now(lambda connection: connection.execute(sa.select(api_key)).all()))


def test_a_key_is_256_random_bits_and_only_its_hash_is_kept(database: Database) -> None:
    made = [database.write_now(lambda c: create(c, "alpha", label="ann")) for _ in range(20)]
    secrets = set()
    for row, key in made:
        assert keys.id_of(key) == row.id
        head, public, secret = key.split("_", 2)
        assert (head, public) == ("tp", row.id)
        assert len(base64.urlsafe_b64decode(secret + "=")) == 32
        secrets.add(secret)
    assert len(secrets) == len({row.id for row, _ in made}) == 20
    stored = {row.id: row for row in rows(database)}
    for row, key in made:
        assert stored[row.id].digest == hashlib.sha256(key.encode()).digest()
    told = repr(rows(database)) + repr(database.read_now(all_keys))
    assert not [secret for secret in secrets if secret in told]


def test_listed_oldest_first_within_a_team(database: Database) -> None:
    for team in ("beta", "alpha", "beta"):
        database.write_now(partial(create, team=team, scopes=["admin"], label=f"of {team}"))
    listed = database.read_now(all_keys)
    assert [key.team for key in listed] == ["alpha", "beta", "beta"]
    assert listed[1].created_at <= listed[2].created_at
    assert abs(listed[0].created_at - time.time()) < 60
    assert database.read_now(lambda c: all_keys(c, "alpha")) == listed[:1]
    assert (listed[0].scopes, listed[0].label, listed[0].ends_at) == (frozenset(("admin",)), "of alpha", None)


def test_rotating_ends_the_old_key_now_or_after_its_grace(database: Database) -> None:
    first, _ = database.write_now(lambda c: create(c, "alpha", ["admin"], "ann"))
    old, second, _ = database.write_now(lambda c: rotate(c, "alpha", grace_seconds=3600.0))
    assert old.id == first.id
    assert old.ends_at == pytest.approx(second.created_at + 3600, abs=5)
    assert (second.scopes, second.label) == (first.scopes, "ann")
    # The one in its grace is not meant where no key is named.
    old, third, _ = database.write_now(lambda c: rotate(c, "alpha"))
    assert old.id == second.id
    # Named, it ends no later than it would have.
    again, *_ = database.write_now(lambda c: rotate(c, "alpha", first.id, grace_seconds=1e6))
    assert again.ends_at == pytest.approx(second.created_at + 3600, abs=5)
    states = {key.id: key.ended for key in database.read_now(all_keys)}
    assert [states[each.id] for each in (first, second, third)] == [False, True, False]


def test_a_revoked_key_keeps_its_row(database: Database) -> None:
    assert not database.read_now(any_key)
    made, _ = database.write_now(lambda c: create(c, "alpha"))
    ended = database.write_now(lambda c: revoke(c, "alpha"))
    assert (ended.id, [key.ended for key in database.read_now(all_keys)]) == (made.id, [True])
    assert database.read_now(any_key)


def test_which_key_is_meant_is_never_guessed(database: Database) -> None:
    one, _ = database.write_now(lambda c: create(c, "alpha"))
    two, _ = database.write_now(lambda c: create(c, "alpha"))
    other, _ = database.write_now(lambda c: create(c, "beta"))
    works: tuple[Callable[..., Any], ...] = (revoke, rotate)
    for work in works:
        with pytest.raises(KeyRefused, match=rf"^--key: is required, team 'alpha' has 2: ({one.id}|{two.id}), "):
            database.write_now(partial(work, team="alpha"))
        with pytest.raises(KeyRefused, match=rf"team 'alpha' has no valid key '{other.id}'"):
            database.write_now(partial(work, team="alpha", key_id=other.id))
    database.write_now(lambda c: revoke(c, "alpha", one.id))
    assert database.write_now(lambda c: revoke(c, "alpha")).id == two.id
    with pytest.raises(KeyRefused, match="team 'alpha' has no valid key"):
        database.write_now(lambda c: revoke(c, "alpha"))
    with pytest.raises(KeyRefused, match="no valid key"):
        database.write_now(lambda c: revoke(c, "alpha", one.id))
    assert [key.ended for key in database.read_now(lambda c: all_keys(c, "beta"))] == [False]
