"""The tables of a database brought up to this version of the program, and whether they are.

Knows Alembic and where the migrations are. What they do is in `migrations/versions`.
"""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tokenpriority_service.database.database import Database

MIGRATIONS = Path(__file__).with_name("migrations")
LOCK = 0x746F6B656E
"""Number of the PostgreSQL lock that one who migrates holds."""

_alembic = threading.Lock()  # what Alembic migrates is global to the process


class NotCurrent(Exception):
    """The tables are not those of this version; the message is one line and says what to do."""


def upgrade(database: Database) -> None:
    """Bring the tables up to this version, all or nothing; of several processes that try, one does it.

    Raises NotCurrent if they are of a newer version, Unavailable if the database cannot be used.
    """
    database.write_now(_upgrade)


def check(database: Database) -> None:
    """Raises NotCurrent unless the tables are those of this version; Unavailable if the database cannot be used."""
    at = database.read_now(_revision)
    if at != (head := _scripts().get_current_head()):
        _refuse_newer(at)
        raise NotCurrent(
            f"the tables of {database.shown} are at version {at or 'none'}, this program needs {head}: "
            "run `tokenpriority db upgrade`"
        )


def _upgrade(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    _refuse_newer(_revision(connection))
    config = _config()
    config.attributes["connection"] = connection
    with _alembic:
        command.upgrade(config, "head")


def _revision(connection: sa.Connection) -> str | None:
    """Version of the tables; None if there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(at: str | None) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if at is not None and at not in known:
        raise NotCurrent(f"the database's tables are at version {at}, of a newer program than this one: update it")


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
