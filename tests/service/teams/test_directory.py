"""Who is let in, by which key, with what scopes and limits; and who is not."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from postgres import Postgres
from tokenpriority.errors import Forbidden, Unauthorized, Unavailable
from tokenpriority_service.configuration.settings import TeamSettings
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.upgrade import upgrade
from tokenpriority_service.teams import directory as module
from tokenpriority_service.teams.caller import ANYONE, Caller, Limits
from tokenpriority_service.teams.directory import Directory
from tokenpriority_service.teams.keys import Key, create, revoke, rotate
from tokenpriority_service.teams.limits import all_limits, get_limits, set_limits

FILE_KEY = "ключ of the file"  # sent as UTF-8 bytes
SENT = FILE_KEY.encode().decode("latin-1")


def call(directory: Directory, header: str | None, scope: Any = "score") -> Caller:
    return asyncio.run(directory.caller(header, scope))


def make(database: Database, team: str, *scopes: str) -> tuple[Key, str]:
    return database.write_now(lambda connection: create(connection, team, scopes or ("score",)))


def refusal(directory: Directory, header: str | None) -> str:
    with pytest.raises(Unauthorized) as caught:
        call(directory, header)
    return caught.value.message


def test_open_until_the_first_key_and_never_again(connect: Callable[[], Database]) -> None:
    database = connect()
    replicas = [Directory(connect(), {}) for _ in range(2)]
    for each in replicas:
        assert each.open_now()
        assert asyncio.run(each.open())
        for header in (None, "Bearer whatever"):
            caller = call(each, header, "admin")
            assert (caller.team, caller.limits) == (ANYONE, Limits())
    _, key = make(database, "alpha")
    for each in replicas:
        assert not asyncio.run(each.open())
        assert "needs a key" in refusal(each, None)
        assert call(each, f"Bearer {key}").team == "alpha"
    database.write_now(lambda connection: revoke(connection, "alpha"))
    for each in [*replicas, Directory(connect(), {})]:
        assert not each.open_now()
        assert refusal(each, f"Bearer {key}") == "Authorization: unknown key"
        assert "needs a key" in refusal(each, None)


def test_scopes(database: Database) -> None:
    directory = Directory(database, {})
    _, score = make(database, "alpha")
    _, admin = make(database, "ops", "admin")
    assert call(directory, f"Bearer {score}").scopes == {"score"}
    for scope in ("score", "admin"):
        assert call(directory, f"Bearer {admin}", scope).scopes == {"score", "admin"}
    with pytest.raises(Forbidden, match="needs a key of scope admin; this one has scope score"):
        call(directory, f"Bearer {score}", "admin")


def test_whatever_is_wrong_with_a_key_is_told_in_the_same_words(database: Database) -> None:
    directory = Directory(database, {"filed": TeamSettings(key_sha256=hashlib.sha256(FILE_KEY.encode()).hexdigest())})
    row, key = make(database, "alpha")
    _, gone = make(database, "gone")
    database.write_now(lambda connection: revoke(connection, "gone"))
    wrong = [
        gone,
        f"tp_{row.id}_{secrets.token_urlsafe(32)}",
        f"tp_{'0' * 12}_{key.split('_', 2)[2]}",
        key[:-1],
        key + "A",
        key.upper(),
        "nonsense",
        "tp_' or 1=1; --_x",
        "tp_\x00",
        SENT[:-1],
        hashlib.sha256(FILE_KEY.encode()).hexdigest(),
        "\xff" * 5000,
    ]
    assert {refusal(directory, f"Bearer {each}") for each in wrong} == {"Authorization: unknown key"}
    lacking = [None, "", "Bearer", "Bearer ", "Basic x", key, f"Basic {key}"]
    [message] = {refusal(directory, each) for each in lacking}
    assert "needs a key" in message
    for header in (f"Bearer {key}", f"bearer {key}", f"BEARER   {key}  "):
        assert call(directory, header).team == "alpha"


def test_keys_of_the_file_may_score_and_have_the_limits_of_the_file(database: Database) -> None:
    declared = TeamSettings(key_sha256=hashlib.sha256(FILE_KEY.encode()).hexdigest(), weight=3.0, concurrent_tokens=7)
    directory = Directory(database, {"alpha": declared, "keyless": TeamSettings(tokens_per_minute=5)})
    assert not directory.open_now()
    assert call(directory, f"Bearer {SENT}") == Caller("alpha", frozenset(("score",)), Limits(3.0, None, 7))
    with pytest.raises(Forbidden):
        call(directory, f"Bearer {SENT}", "admin")
    # A key of the database of a team in the file, too; what the table says of it counts for nothing.
    database.write_now(lambda connection: set_limits(connection, "alpha", Limits(9.0, 1, 1)))
    for team, limits in (("alpha", Limits(3.0, None, 7)), ("keyless", Limits(1.0, 5, None))):
        _, key = make(database, team)
        assert call(directory, f"Bearer {key}").limits == limits


def test_limits_hold_from_the_next_request_on(connect: Callable[[], Database]) -> None:
    database, directory = connect(), Directory(connect(), {})
    _, key = make(database, "alpha")
    assert call(directory, f"Bearer {key}").limits == Limits(1.0, None, None)
    for limits in (Limits(0.5, 2**40, 100), Limits(2.0, None, 5), Limits()):
        database.write_now(partial(set_limits, team="alpha", limits=limits))
        assert call(directory, f"Bearer {key}").limits == limits
        assert database.read_now(lambda connection: get_limits(connection, "alpha")) == limits
    assert database.read_now(all_limits) == {"alpha": Limits()}
    assert database.read_now(lambda connection: get_limits(connection, "beta")) == Limits()


def test_a_rotated_key_holds_through_its_grace(sqlite: Database, clock: Any) -> None:
    directory = Directory(sqlite, {}, clock)
    _, old = sqlite.write_now(lambda connection: create(connection, "alpha", clock=clock))
    _, _, new = sqlite.write_now(lambda connection: rotate(connection, "alpha", grace_seconds=60.0, clock=clock))
    for seconds, holds in ((0.0, True), (59.9, True), (0.1, False), (1e6, False)):
        clock.now += seconds
        assert call(directory, f"Bearer {new}").team == "alpha"
        if holds:
            assert call(directory, f"Bearer {old}").team == "alpha"
        else:
            assert refusal(directory, f"Bearer {old}") == "Authorization: unknown key"


def test_an_unknown_id_is_looked_up_and_compared_like_a_known_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory(database, {})
    row, _ = make(database, "alpha")
    refusal(directory, "Bearer x")  # it now knows that it is closed
    compared: list[tuple[int, int]] = []
    statements: list[str] = []

    class Watched:
        @staticmethod
        def compare_digest(known: bytes, sent: bytes) -> bool:
            compared.append((len(known), len(sent)))
            return hmac.compare_digest(known, sent)

    monkeypatch.setattr(module, "hmac", Watched)
    sa.event.listen(database._engine, "before_cursor_execute", lambda c, cursor, text, *rest: statements.append(text))
    seen = []
    for key_id in (row.id, "0" * 12):
        refusal(directory, f"Bearer tp_{key_id}_{secrets.token_urlsafe(32)}")
        seen.append((compared.copy(), [text for text in statements if "SELECT" in text]))
        compared.clear()
        statements.clear()
    assert seen[0] == seen[1]
    assert seen[0][0] == [(32, 32)]
    assert len(seen[0][1]) == 1, "one round trip, limits of the team and all"


def test_without_the_database_nobody_is_let_in_but_by_the_file() -> None:
    with Postgres() as server:
        database = Database(server.create_database())
        upgrade(database)
        _, key = make(database, "alpha")
        directory = Directory(database, {"filed": TeamSettings(key_sha256=hashlib.sha256(b"filed").hexdigest())})
        assert call(directory, f"Bearer {key}").team == "alpha"
        server.stop()
        for each, header in ((directory, f"Bearer {key}"), (Directory(database, {}), None)):
            with pytest.raises(Unavailable) as caught:
                call(each, header)
            assert caught.value.retry_after is not None
        assert call(directory, "Bearer filed").team == "filed"
        server.start()
        assert call(directory, f"Bearer {key}").team == "alpha"
        database.close()
