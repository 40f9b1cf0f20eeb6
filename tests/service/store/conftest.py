"""Databases of both kinds, and stores of every kind, for the same tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stores import Held, layered
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.upgrade import upgrade
from tokenpriority_service.store import MemoryStore


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    url: str = request.getfixturevalue("postgres").create_database()
    return url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    upgrade(database)
    yield database
    database.close()


@pytest.fixture(params=["memory", "sqlite", "sqlite and memory", "sqlite in memory", "postgresql"])
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Held]:
    """A store with room for all; where a memory is not named, everything comes from the database."""
    if request.param == "memory":
        with Held(MemoryStore(1 << 26)) as held:
            yield held
        return
    urls: dict[str, Any] = {
        "postgresql": lambda: request.getfixturevalue("postgres").create_database(),
        "sqlite in memory": lambda: "sqlite://",
    }
    database = Database(urls.get(request.param, lambda: f"sqlite:///{tmp_path / 'store.db'}")())
    upgrade(database)
    with layered(database, memory_bytes=1 << 26 if request.param == "sqlite and memory" else 0) as held:
        yield held
    database.close()
