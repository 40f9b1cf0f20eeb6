"""Real server processes, and two of them on one PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres import Postgres
from replica import Replica, configured, run


@pytest.fixture(scope="session")
def shared(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of servers on one new PostgreSQL database."""
    config = configured(tmp_path_factory.mktemp("replicas"), postgres.create_database())
    run(config, "db", "upgrade")
    run(config, "keys", "create", "--team", "operator", "--scope", "admin")  # from now on keys are asked for
    return config


@pytest.fixture(scope="session")
def replicas(shared: Path) -> Iterator[tuple[Replica, Replica]]:
    """Two processes on it."""
    with Replica(shared, "a") as a, Replica(shared, "b") as b:
        yield a, b
