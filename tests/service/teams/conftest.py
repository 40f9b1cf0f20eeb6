"""The databases every test of this folder runs on: a file of SQLite, and a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postgres import Postgres
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.upgrade import upgrade


class FakeClock:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database with all tables."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'teams.db'}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        made = server.create_database()
    database = Database(made)
    upgrade(database)
    database.close()
    return made


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], Database]]:
    """Makes databases at `url`, each as a replica of its own has it."""
    made: list[Database] = []

    def connect() -> Database:
        made.append(Database(url))
        return made[-1]

    yield connect
    for each in made:
        each.close()


@pytest.fixture
def database(connect: Callable[[], Database]) -> Database:
    return connect()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """A file of SQLite alone, where the time is the test's."""
    database = Database(f"sqlite:///{tmp_path / 'alone.db'}")
    upgrade(database)
    yield database
    database.close()
