"""kill -9 in the middle of writes: what was committed is there, nothing is corrupt, and no part of a lot is seen."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from postgres import Postgres
from store_writer import lot, start, told
from stores import layered, rows_of
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.upgrade import upgrade

FILES, ROUNDS = 5, 20
LOTS = 10_000
"""Lots of one round, at most."""


def check(database: Database, committed: Sequence[int], begun: int) -> int:
    """How many lots are there, of those below `begun`: all that were committed, each whole."""
    rows = rows_of(database)
    there = set()
    expected = 0
    for round_ in range(begun):
        number = LOTS * round_
        while all((wish.keys[-1], 0, 0) in rows or (wish.keys[-1], 1, 0) in rows for wish in lot(number)):
            there.add(number)
            expected += sum(len(wish.keys) for wish in lot(number))
            number += 1
    assert there >= set(committed)
    assert len(rows) == expected, "a part of a lot is there"
    return len(there)


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_writing_to_sqlite(tmp_path: Path) -> None:
    """100 rounds over 5 files; every round goes on with the file as the last one left it."""
    moments = random.Random(1)
    total = unreported = 0
    for file in range(FILES):
        path = tmp_path / f"{file}.db"
        database = Database(f"sqlite:///{path}")
        upgrade(database)
        committed: list[int] = []
        for round_ in range(ROUNDS):
            process, pipe = start(f"sqlite:///{path}", LOTS * round_)
            if round_ % 4:  # otherwise killed as early as while it connects
                assert pipe.poll(60)
            time.sleep(moments.uniform(0, 0.03))
            process.kill()
            process.join()
            committed += told(pipe)
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            there = check(database, committed, round_ + 1)
        total += len(committed)
        unreported += there - len(committed)
        with layered(database, memory_bytes=0) as held:
            assert all(held.known(wish) == wish.length for wish in lot(committed[-1]))
        database.close()
    assert total > FILES * ROUNDS
    assert unreported <= FILES * ROUNDS


def test_a_process_killed_in_the_middle_of_writing_to_postgresql(postgres: Postgres) -> None:
    moments = random.Random(2)
    database = Database(postgres.create_database())
    upgrade(database)
    committed: list[int] = []
    for round_ in range(5):
        process, pipe = start(database.url.render_as_string(), LOTS * round_)
        assert pipe.poll(60)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        committed += told(pipe)
        check(database, committed, round_ + 1)
    assert len(committed) >= 5
    database.close()


def test_a_postgresql_server_killed_in_the_middle_of_writing() -> None:
    """The writer goes on meanwhile; what it was told is committed outlives every end of the server."""
    with Postgres() as server:
        database = Database(server.create_database())
        upgrade(database)
        process, pipe = start(database.url.render_as_string(), 0)
        committed = []
        for way in ("immediate", "kill", "immediate"):
            assert pipe.poll(60)
            time.sleep(0.1)
            server.stop(immediate=True) if way == "immediate" else server.kill()
            while pipe.poll():
                committed.append(pipe.recv())
            server.start()
            rows = {key for key, _, _ in rows_of(database)}
            for number in committed:
                assert rows.issuperset(key for wish in lot(number) for key in wish.keys)
        assert pipe.poll(60), "it does not write again"
        process.kill()
        process.join()
        committed += told(pipe)
        rows_of(database)
        assert len(committed) >= 4
        database.close()
