"""Connections, transactions, and a database that is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from postgres import Postgres
from tokenpriority.errors import Unavailable
from tokenpriority_service.database.database import READERS, Database, InvalidUrl

CREATE = sa.text("CREATE TABLE number (value integer)")
INSERT = sa.text("INSERT INTO number VALUES (:value)")
SUM = sa.text("SELECT coalesce(sum(value), 0) FROM number")


def total(connection: sa.Connection) -> int:
    return int(connection.execute(SUM).scalar_one())


def add(value: int) -> Any:
    return lambda connection: connection.execute(INSERT, {"value": value})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hello", "not a URL such as"),
        ("mysql://root:secret@host/name", "must begin with sqlite:// or postgresql://, got mysql://"),
        ("", "not a URL such as"),
    ],
)
def test_a_url_of_no_use(url: str, message: str) -> None:
    with pytest.raises(InvalidUrl, match=message) as raised:
        Database(url)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidUrl, match="its folder cannot be made"):
        Database(f"sqlite:///{tmp_path / 'file' / 'deeper' / 'test.db'}")


def test_a_password_is_not_shown() -> None:
    database = Database("postgresql://user:secret@host/name")
    assert database.shown == "postgresql://user:***@host/name"
    database.close()


def test_the_file_and_its_folders_are_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a' / 'b' / 'test.db'}")
    modes = [
        database.read_now(lambda c, name=name: c.execute(sa.text(f"PRAGMA {name}")).scalar_one())  # type: ignore[misc]
        for name in ("journal_mode", "synchronous", "page_size")
    ]
    assert modes == ["wal", 1, 4096]
    database.close()


def test_a_host_that_never_answers_is_found_out_once_not_by_every_caller() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        silent.settimeout(0.2)
        database = Database(f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/name")

        async def ask() -> list[Any]:
            return await asyncio.gather(*(database.read(total) for _ in range(60)), return_exceptions=True)

        answers = asyncio.run(ask()) + asyncio.run(ask())
        database.close()
        assert all(isinstance(each, Unavailable) for each in answers)
        connections = []
        with contextlib.suppress(TimeoutError):
            while True:
                connections.append(silent.accept()[0])
        for each in connections:
            each.close()
        assert 1 <= len(connections) <= READERS


def test_all_of_a_transaction_or_nothing(database: Database) -> None:
    database.write_now(lambda c: c.execute(CREATE))
    database.write_now(add(1))

    def half(connection: sa.Connection) -> None:
        connection.execute(INSERT, {"value": 10})
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        database.write_now(half)
    assert database.read_now(total) == 1

    def write(connection: sa.Connection) -> None:
        connection.execute(INSERT, {"value": 100})

    database.read_now(write)
    assert database.read_now(total) == 1, "what is read with does not write"


def test_writers_of_two_pools_at_once(database: Database, url: str) -> None:
    """Each reads, then writes what it read plus one: nothing is lost only if they take turns."""
    database.write_now(lambda c: c.execute(CREATE))
    database.write_now(add(0))
    other = Database(url)

    def increase(connection: sa.Connection) -> None:
        lock = "" if connection.dialect.name == "sqlite" else " FOR UPDATE"
        value = connection.execute(sa.text(f"SELECT value FROM number{lock}")).scalar_one()
        connection.execute(sa.text("UPDATE number SET value = :value"), {"value": value + 1})

    async def many() -> None:
        await asyncio.gather(*(each.write(increase) for each in (database, other) for _ in range(40)))

    asyncio.run(many())
    assert database.read_now(total) == 80
    other.close()


@pytest.mark.parametrize("url", ["sqlite://"])
def test_one_in_memory_is_shared_by_threads(database: Database) -> None:
    assert database.in_memory
    database.write_now(lambda c: c.execute(CREATE))

    async def many() -> list[int]:
        await asyncio.gather(*(database.write(add(1)) for _ in range(50)))
        return list(await asyncio.gather(*(database.read(total) for _ in range(50))))

    assert asyncio.run(many()) == [50] * 50


def test_the_loop_goes_on_while_a_database_works(database: Database) -> None:
    async def both() -> None:
        arrived, release = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def wait(_: sa.Connection) -> bool:
            loop.call_soon_threadsafe(arrived.set)
            return release.wait(30)

        waiting = asyncio.create_task(database.read(wait))
        await asyncio.wait_for(arrived.wait(), 30)
        release.set()
        assert await waiting

    asyncio.run(both())


def test_a_server_that_goes_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    with Postgres() as server:
        database = Database(server.create_database())
        database.write_now(lambda c: c.execute(CREATE))
        database.write_now(add(1))
        server.stop()
        for _ in range(20):
            with pytest.raises(Unavailable) as raised:
                database.read_now(total)
            assert raised.value.retry_after == 2.0
            assert str(raised.value) == "the server's database cannot be used now"
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert 1 <= len(lines) <= 2, "the same trouble is said once"
        assert all(line.startswith("database: ") for line in lines)
        server.start()
        assert database.read_now(total) == 1
        # Gone and back between two uses: nobody notices.
        server.restart(immediate=True)
        assert database.read_now(total) == 1
        database.close()


def test_an_error_of_the_drivers_own_cursor(postgres: Postgres) -> None:
    database = Database(postgres.create_database())

    def fail(connection: sa.Connection) -> None:
        driver: Any = connection.connection
        with driver.cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")

    for call in (database.read_now, database.write_now):
        with pytest.raises(Unavailable):
            call(fail)
    assert database.read_now(lambda c: c.execute(sa.text("SELECT 1")).scalar_one()) == 1
    database.close()


def test_a_lock_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.write_now(lambda c: c.execute(CREATE))
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO number VALUES (1)")
    timer = threading.Timer(0.2, lambda: other.execute("COMMIT"))
    timer.start()
    database.write_now(add(10))
    timer.join()
    other.close()
    assert database.read_now(total) == 11
    database.close()
