"""One database, whatever its kind.

Knows how SQLite and PostgreSQL are connected to, in which thread work on them runs, and that a database may be away:
then whoever asked gets Unavailable. Knows no tables.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import StaticPool

from tokenpriority.errors import Unavailable

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

READERS, WRITERS = 6, 4
"""Threads of one process, each with a connection; SQLite has one that writes."""
CONNECT_SECONDS = 5
BUSY_SECONDS = 5
"""How long SQLite waits for another process that writes."""
RETRY_SECONDS = 2.0
"""`retry_after` while the database is away."""
SILENT_SECONDS = 1.0
"""A host that lets a connection fail only after so long is asked by one caller in RETRY_SECONDS; the others are told
at once, so that they do not wait for it one after another."""
RESERVED_BYTES = 64 << 20
"""What SQLite's disk keeps free for keys, charges and usage, half of a small disk; see `has_room`."""

STATEMENT_SECONDS = 10
"""How long PostgreSQL may take for a statement, or hold a transaction in which nothing happens."""
LOG_SECONDS = 60.0
"""The same trouble is logged once in this time."""

logger = logging.getLogger(__name__)


class InvalidUrl(ValueError):
    """The URL of a database cannot be used; the message is one line and holds no password."""


class Database:
    """A pool of connections and of threads. `sqlite://` alone is a database in memory, gone with this object.

    Raises InvalidUrl. Connects when first used.
    """

    def __init__(self, url: str) -> None:
        self.url = _parse(url)
        self.dialect = self.url.get_backend_name()
        self._engine = _sqlite(self.url) if self.dialect == "sqlite" else _postgresql(self.url)
        # SQLite has one writer at a time; one in memory has one connection, for readers too.
        self._writing = threading.Lock() if self.dialect == "sqlite" else None
        self._reading = self._writing if self.in_memory else None
        # psycopg's own errors reach us from cursors that SQLAlchemy does not wrap, and a connection that dies between
        # two steps is an InvalidRequestError.
        self._errors = (DBAPIError, InvalidRequestError, PoolTimeout, self._engine.dialect.loaded_dbapi.Error)
        self._logged: dict[str, float] = {}
        self._silent_lock = threading.Lock()
        self._next_try: float | None = None
        """While its host is silent: when to try again."""
        # Apart: work that waits for its turn to write does not keep others from reading.
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="database-read")
        writers = 1 if self.dialect == "sqlite" else WRITERS
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix="database-write")

    @property
    def in_memory(self) -> bool:
        """Whether nothing is kept beyond this object."""
        return self.dialect == "sqlite" and not self.url.database

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def has_room(self) -> bool:
        """Whether there is room for what can be left out: on a disk that is full, nobody could be charged."""
        if self.dialect != "sqlite" or self.in_memory:
            return True
        disk = shutil.disk_usage(Path(str(self.url.database)).parent)
        return disk.free > min(RESERVED_BYTES, disk.total // 2)

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a connection, in a thread. Raises Unavailable if the database is away."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, work)

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction, in a thread: all of it is committed, or nothing. Raises Unavailable."""
        return await asyncio.get_running_loop().run_in_executor(self._writers, self.write_now, work)

    def read_now(self, work: Work[T]) -> T:
        """`read` in the calling thread."""
        try:
            with self._reading or nullcontext(), self._connect() as connection:
                return work(connection)
        except self._errors as error:
            raise self._away(error) from error

    def write_now(self, work: Work[T]) -> T:
        """`write` in the calling thread."""
        try:
            with (
                self._writing or nullcontext(),
                self._connect() as connection,
                connection.execution_options(writes=True).begin(),
            ):
                return work(connection)
        except self._errors as error:
            raise self._away(error) from error

    def close(self) -> None:
        """Wait for what runs, then disconnect."""
        self._readers.shutdown()
        self._writers.shutdown()
        self._engine.dispose()

    def _connect(self) -> sa.Connection:
        began = time.monotonic()
        with self._silent_lock:
            if self._next_try is not None:
                if began < self._next_try:
                    raise _unavailable()
                self._next_try = began + RETRY_SECONDS
        try:
            connection = self._engine.connect()
        except self._errors:
            failed = time.monotonic()
            silent = self.dialect == "postgresql" and failed - began >= SILENT_SECONDS
            self._next_try = failed + RETRY_SECONDS if silent else None
            raise
        self._next_try = None
        return connection

    def _away(self, error: Exception) -> Unavailable:
        said = reason(error)
        now = time.monotonic()
        self._logged = {text: at for text, at in self._logged.items() if now - at < LOG_SECONDS}
        if said not in self._logged:
            self._logged[said] = now
            logger.warning("database: %s", said)
        return _unavailable()


def _unavailable() -> Unavailable:
    return Unavailable("the server's database cannot be used now", retry_after=RETRY_SECONDS)


def reason(error: BaseException) -> str:
    """What a database said, one line, for the log alone: of the driver's text, as further lines may hold values."""
    if isinstance(error, Unavailable) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise InvalidUrl("not a URL such as sqlite:///file.db or postgresql://user@host/name") from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InvalidUrl(f"must begin with sqlite:// or postgresql://, got {parsed.get_backend_name()}://")
    if parsed.database == ":memory:" or "uri" in parsed.query:
        raise InvalidUrl("an SQLite database is a file, or in memory with sqlite:// alone")
    return parsed


def _sqlite(url: sa.URL) -> sa.Engine:
    if not url.database:
        engine = sa.create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidUrl(f"{url.database}: its folder cannot be made: {error.strerror}") from None
        engine = sa.create_engine(
            url,
            pool_size=READERS + WRITERS,
            max_overflow=1,
            connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
        )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are ours to begin
        connection.execute("PRAGMA page_size = 4096")
        _turn_to_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A reader that turns writer would be refused at once if another process wrote meanwhile.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _turn_to_wal(connection: Any) -> None:
    """Of several processes that open a new file at once one does it; SQLite refuses the others without waiting."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _postgresql(url: sa.URL) -> sa.Engine:
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=READERS + WRITERS,
            max_overflow=1,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "tcp_user_timeout": 1000 * STATEMENT_SECONDS,  # a server that is cut off, or gone without a word
                "options": f"-c statement_timeout={STATEMENT_SECONDS}s "
                f"-c idle_in_transaction_session_timeout={STATEMENT_SECONDS}s",
            },
        )
    except ImportError as error:
        raise InvalidUrl(f'postgresql needs {error.name}: pip install "tokenpriority[postgres]"') from None
