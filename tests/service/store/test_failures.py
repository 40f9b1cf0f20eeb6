"""A database that is full, slow, away or strange: scoring goes on, one line in the log says so, and it recovers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from postgres import Postgres
from stores import Held, Watch, ids, layered, rows_of, truth, wanted
from tokenpriority_service.database.database import READERS, Database
from tokenpriority_service.database.upgrade import upgrade
from tokenpriority_service.store import health, writer
from tokenpriority_service.store import layered as layers

LOGGER = "tokenpriority_service.store.health"


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines the store logged so far."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.name == LOGGER]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "RETRY_SECONDS", 0.05)


@pytest.fixture
def server() -> Iterator[Postgres]:
    """A PostgreSQL server that a test may stop."""
    with Postgres() as server:
        yield server


def again(held: Held) -> None:
    held.run(asyncio.sleep(2 * health.RETRY_SECONDS))


def limit_pages(database: Database, pages: int) -> None:
    """What a full disk is to SQLite: the file may not grow beyond so many pages, on any connection."""

    def limit(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    database._engine.dispose()
    sa.event.listen(database._engine, "connect", limit)


def test_a_full_disk(tmp_path: Path, watch: Watch, lines: Callable[[], list[str]]) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    upgrade(database)
    pages = database.read_now(lambda c: c.execute(sa.text("PRAGMA page_count")).scalar_one())
    limit_pages(database, pages + 200)
    wishes = [wanted(ids(500, seed)) for seed in range(60)]
    with layered(database, watch=watch) as held, layered(database, memory_bytes=0) as other:
        held.keep(*wishes[:20])
        assert watch.failures == []
        for wish in wishes[20:]:
            held.keep(wish)
            again(held)
        assert watch.failures
        assert set(watch.failures) == {"keep"}
        assert lines() == ["the store does not work: keep: database or disk is full"]
        assert [held.known(wish) for wish in wishes] == [500] * 60, "memory has what the table could not take"
        assert [other.known(wish) for wish in wishes[:20]] == [500] * 20, "what was written is there"
        before = rows_of(database)
        assert len(before) % 8 == 0, "a part of a request was written"

        limit_pages(database, 1 << 30)
        again(held)
        watch.failures.clear()
        more = wanted(ids(500, 99))
        held.keep(more)
        assert lines()[1:] == ["the store works again"]
        assert watch.failures == []
        assert other.known(more) == 500
        assert rows_of(database).keys() > before.keys()
    database.close()


def test_a_server_that_is_stopped_and_started(server: Postgres, watch: Watch, lines: Callable[[], list[str]]) -> None:
    database = Database(server.create_database())
    upgrade(database)
    one, two, three = (wanted(ids(500, seed)) for seed in range(3))
    with layered(database) as held:
        held.keep(two)
    with layered(database, watch=watch) as held:
        held.keep(one)
        server.stop(immediate=True)
        assert held.known(one) == 500, "from memory"
        assert held.known(two) == 0
        held.keep(three)
        assert held.known(three) == 500
        assert {"find", "keep"} == set(watch.failures)
        (line,) = lines()
        assert line.startswith("the store does not work: find: ")
        server.start()
        again(held)
        assert held.known(two) == 500
        held.keep(wanted(ids(500, 4)))
        assert lines()[1:] == ["the store works again"]
        watch.failures.clear()
        assert held.known(one) == held.known(wanted(ids(500, 4))) == 500
        assert watch.failures == []
    rows_of(database)
    database.close()


def test_a_server_that_was_never_there(free_port: int, watch: Watch, lines: Callable[[], list[str]]) -> None:
    database = Database(f"postgresql://nobody:secret@127.0.0.1:{free_port}/none")
    with layered(database, watch=watch) as held:
        held.keep(wanted(ids(500)))
        assert held.known(wanted(ids(500))) == 500
        assert held.known(wanted(ids(500, 1))) == 0
    assert set(watch.failures) == {"find", "keep"}
    assert len(lines()) == 1
    assert "secret" not in "".join(lines())
    database.close()


def test_a_database_without_tables(url: str, watch: Watch, lines: Callable[[], list[str]]) -> None:
    database = Database(url)
    with layered(database, watch=watch) as held:
        held.keep(wanted(ids(500)))
        assert held.known(wanted(ids(500))) == 500
        assert held.known(wanted(ids(500, 1))) == 0
        assert len(lines()) == 1
        upgrade(database)
        again(held)
        held.keep(wanted(ids(500, 1)))
        assert held.known(wanted(ids(500, 2))) == 0
        assert lines()[1:] == ["the store works again"]
    assert len(rows_of(database)) == 8
    database.close()


def test_a_file_that_is_no_database(tmp_path: Path, watch: Watch, lines: Callable[[], list[str]]) -> None:
    (tmp_path / "store.db").write_bytes(b"nothing of the kind" * 1000)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    with layered(database, watch=watch) as held:
        held.keep(wanted(ids(500)))
        assert held.known(wanted(ids(500))) == 500
        assert held.known(wanted(ids(500, 1))) == 0
    assert lines() == ["the store does not work: keep: file is not a database"]
    database.close()


def test_whoever_holds_the_database_holds_up_no_request(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes and does not end: reading goes on, what is kept waits a while and is dropped."""
    monkeypatch.setattr(writer, "ROOM_SECONDS", 0.1)
    monkeypatch.setattr(writer, "WAITING_BYTES", 50_000)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    upgrade(database)
    with layered(database, memory_bytes=0) as held:
        held.keep(wanted(ids(500)))
    with layered(database, memory_bytes=0, watch=watch) as held:
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for seed in range(1, 8):
            wish = wanted(ids(500, seed))
            held.run(held.store.keep([(wish, truth(wish))]))
        assert held.known(wanted(ids(500))) == 500
        assert watch.failures
        assert set(watch.failures) == {"keep"}
        other.execute("COMMIT")
        other.close()
        held.settle()
        held.keep(wanted(ids(500, 9)))
        assert held.known(wanted(ids(500, 9))) == held.known(wanted(ids(500, 1))) == 500
    database.close()


def test_a_database_that_does_not_answer_is_not_waited_for(
    database: Database, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread of the database is busy: nothing can be read in time."""
    monkeypatch.setattr(layers, "FIND_SECONDS", 0.1)
    with layered(database) as held:
        held.keep(wanted(ids(500)))
    with layered(database, watch=watch) as held:
        release = threading.Event()
        busy = [database._readers.submit(release.wait) for _ in range(READERS)]
        assert held.find(wanted(ids(500))).shape == (6, 0)
        assert watch.failures == ["find"]
        release.set()
        assert all(each.result(10) for each in busy)
        again(held)
        assert held.known(wanted(ids(500))) == 500


def test_while_it_does_not_work_the_database_is_left_alone(
    database: Database, watch: Watch, monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(health, "RETRY_SECONDS", 1000.0)
    with layered(database) as held:
        held.keep(wanted(ids(500)))
    database.write_now(lambda c: c.execute(sa.text("ALTER TABLE evidence RENAME TO away")))
    with layered(database, watch=watch) as held:
        for seed in range(20):
            assert held.known(wanted(ids(500, seed))) == 0
        database.write_now(lambda c: c.execute(sa.text("ALTER TABLE away RENAME TO evidence")))
        assert held.known(wanted(ids(500))) == 0
        assert watch.failures == ["find"] * 42
        assert len(lines()) == 1
