"""Migrations: on both databases, at once, all or nothing, and to exactly the tables that the code knows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from database_upgrader import together
from postgres import Postgres
from tokenpriority_service.database import upgrade as module
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.tables import metadata
from tokenpriority_service.database.upgrade import NotCurrent, check, upgrade

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.create_table("later", sa.Column("name", sa.String))
    op.execute("INSERT INTO later VALUES ('here')")
    {then}
"""


def names(database: Database) -> set[str]:
    return set(database.read_now(lambda connection: sa.inspect(connection).get_table_names()))


def shape(database: Database) -> Any:
    """Everything SQLite knows of tables and indexes; reflection leaves out the order of an index."""

    def read(connection: sa.Connection) -> Any:
        def ask(pragma: str, name: str) -> Any:
            return connection.execute(sa.text(f"PRAGMA {pragma}('{name}')")).all()

        tables = {}
        for name in metadata.tables:
            indexes = {row[1]: (row[2:], ask("index_xinfo", row[1])) for row in ask("index_list", name)}
            tables[name] = ask("table_xinfo", name), indexes
        return tables

    return database.read_now(read)


def test_the_tables_are_made_once(database: Database) -> None:
    with pytest.raises(NotCurrent, match="are at version none, this program needs 0001: run `tokenpriority db"):
        check(database)
    upgrade(database)
    check(database)
    assert names(database) == {*metadata.tables, "alembic_version"}
    database.write_now(lambda c: c.execute(sa.text("INSERT INTO team (name, weight, created_at) VALUES ('a', 1, 2)")))
    upgrade(database)
    check(database)
    assert database.read_now(lambda c: c.execute(sa.text("SELECT name FROM team")).scalars().all()) == ["a"]


def test_the_tables_are_those_the_code_knows(database: Database) -> None:
    upgrade(database)
    if database.dialect == "postgresql":
        difference = database.read_now(lambda c: compare_metadata(MigrationContext.configure(c), metadata))
        assert difference == []
    else:
        made = Database("sqlite://")
        made.write_now(metadata.create_all)
        assert shape(database) == shape(made)
        made.close()


def test_a_database_in_memory_has_tables_of_its_own() -> None:
    one, two = Database("sqlite://"), Database("sqlite://")
    upgrade(one)
    check(one)
    assert names(two) == set()
    one.close()
    two.close()


def test_evidence_is_stored_as_it_is(postgres: Postgres) -> None:
    database = Database(postgres.create_database())
    upgrade(database)
    query = "SELECT attstorage FROM pg_attribute WHERE attrelid = 'evidence'::regclass AND attname = 'data'"
    assert database.read_now(lambda c: c.execute(sa.text(query)).scalar_one()) in ("e", b"e")
    database.close()


def test_several_processes_at_once(url: str) -> None:
    assert together(url, 4) == ["current"] * 4
    assert together(url, 4) == ["current"] * 4


def more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """A later version of this program, with one more migration."""
    folder = tmp_path / "migrations"
    shutil.copytree(module.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "0002_later.py").write_text(NEXT.format(then=then))
    monkeypatch.setattr(module, "MIGRATIONS", folder)


def test_a_later_version_adds_to_what_is_there(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(database)
    with monkeypatch.context() as patched:
        more(tmp_path, patched, "")
        with pytest.raises(NotCurrent, match="are at version 0001, this program needs 0002"):
            check(database)
        upgrade(database)
        check(database)
        assert names(database) == {*metadata.tables, "alembic_version", "later"}
    for call in (check, upgrade):
        with pytest.raises(NotCurrent, match="at version 0002, of a newer program than this one"):
            call(database)
    assert "later" in names(database)


def test_a_migration_that_fails_changes_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(database)
    more(tmp_path, monkeypatch, "raise ArithmeticError('in the middle')")
    with pytest.raises(ArithmeticError, match="in the middle"):
        upgrade(database)
    assert names(database) == {*metadata.tables, "alembic_version"}
    with pytest.raises(NotCurrent, match="are at version 0001"):
        check(database)
