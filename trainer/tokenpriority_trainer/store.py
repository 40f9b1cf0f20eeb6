"""Scores kept on this machine, so that no document is asked about twice and a run can do without a server.

One SQLite file that answers one question: by which method, parameters and models its scores were made stands in it, and
opening it for another question is refused. A document is found by what is sent of it, its token ids and its mask.
Several processes of one machine may use the file at once. Knows nothing of batches or training.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from tokenpriority import Client, Scores, wire
from tokenpriority.methods import get_method
from tokenpriority_trainer.errors import ConfigError, WeightError

T = TypeVar("T")

Sent = Mapping[str, Any]
"""What is sent of a document: `token_ids`, uint32 (T,), and `mask`, uint8 (T,)."""

BUSY_SECONDS = 30.0
"""How long another process's transaction is waited for."""

_FORMAT = 1
"""SQLite's `user_version` of the files."""

_TABLES = (
    "CREATE TABLE provenance (field TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE scores (key BLOB PRIMARY KEY, logprobs BLOB NOT NULL, priorities BLOB NOT NULL)",
    f"PRAGMA user_version = {_FORMAT}",
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What scores were made by."""

    model: str
    """Name of the reference on the server."""
    method: str
    version: int
    params: dict[str, Any]
    """The method's parameters with its defaults, as JSON has them."""
    fingerprints: dict[str, str]
    """Of each model the method reads, by its name on the server."""

    @classmethod
    def of_server(cls, client: Client, model: str, method: str, params: Mapping[str, Any]) -> Self:
        """What this server's scores are made by now, which the client is held to from now on.

        Raises ConfigError if the server lacks a model or the method; the client's errors if it does not answer, or
        was held to other models.
        """
        models = {info.name: info.fingerprint for info in client.models()}
        versions = {info.name: info.version for info in client.methods()}
        fingerprints = {name: _known("model", name, models) for name in models_read(model, method, params)}
        client.pin(fingerprints)
        return cls(model, method, _known("method", method, versions), _parsed(method, params), fingerprints)

    def asking(self, model: str, method: str, params: Mapping[str, Any]) -> Self:
        """The same models, asked this, by the version of the method that is installed here."""
        version = get_method(method).version
        return replace(self, model=model, method=method, version=version, params=_parsed(method, params))


def models_read(model: str, method: str, params: Mapping[str, Any]) -> list[str]:
    """Names of the models a method reads on a server: the reference, and the base where it has one."""
    made = get_method(method)
    parsed: Any = made.parse(params)
    return [model, *([parsed.base] if "base" in made.needs(parsed) else [])]


class Store:
    """An open file of scores; may be used from several threads. `Store.open` makes one."""

    def __init__(self, path: Path, database: sqlite3.Connection, provenance: Provenance) -> None:
        self.path = path
        self.provenance = provenance
        self._database = database
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, database.close)

    @classmethod
    def open(cls, path: str | Path, provenance: Provenance | None = None) -> Self:
        """The store at `path`; made if it is not there and `provenance` says what it is to hold.

        Raises ConfigError if there is none, the file is something else, or it holds scores of another provenance.
        """
        path = Path(path)
        if not (path.parent.is_dir() if provenance is not None else path.is_file()):
            missing = path if provenance is None else path.parent
            raise ConfigError(f"priorities.store: there is no {missing}")
        try:
            database = sqlite3.connect(path, BUSY_SECONDS, isolation_level="IMMEDIATE", check_same_thread=False)
            try:
                found = _opened(database, path, provenance)
            except BaseException:
                database.close()
                raise
        except sqlite3.Error as error:
            raise ConfigError(f"priorities.store: {path} cannot be used: {error}") from None
        store = cls(path, database, found)
        store.check(provenance or found)
        return store

    def check(self, wanted: Provenance) -> None:
        """Raises ConfigError naming the first field in which the scores were made by something else."""
        for field in fields(Provenance):
            stored, asked = getattr(self.provenance, field.name), getattr(wanted, field.name)
            if stored != asked:
                raise ConfigError(
                    f"priorities.store: {self.path} holds scores of {field.name} {json.dumps(stored)}, this run asks "
                    f"for {json.dumps(asked)}; name another file"
                )

    def find(self, sent: Sequence[Sent]) -> list[Scores | None]:
        """The scores of each document, None where they are not there.

        Raises WeightError if what is there is not as long as the document, or the file cannot be read.
        """
        with self._use() as database:
            return [self._found(database, each) for each in sent]

    def keep(self, sent: Sequence[Sent], scores: Sequence[Scores]) -> None:
        """Keep the scores of each document; those that are there already stay. Raises WeightError if it cannot."""
        rows = [
            (_key(each), _bytes(made.logprobs), _bytes(made.priorities))
            for each, made in zip(sent, scores, strict=True)
        ]
        if rows:
            with self._use() as database:
                database.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file; idempotent. What was kept then stands in this one file."""
        with self._lock:
            self._end()

    @contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        """The database, for one transaction of one thread."""
        try:
            with self._lock, self._database:
                yield self._database
        except sqlite3.Error as error:
            raise WeightError(f"the store {self.path} cannot be used: {error}") from None

    def _found(self, database: sqlite3.Connection, sent: Sent) -> Scores | None:
        ids = sent["token_ids"]
        row = database.execute("SELECT logprobs, priorities FROM scores WHERE key = ?", (_key(sent),)).fetchone()
        if row is None:
            return None
        for name, value in zip(("logprobs", "priorities"), row, strict=True):
            if len(value) != len(ids) * wire.F4.itemsize:
                raise WeightError(
                    f"the store {self.path}: the {name} of a document of {len(ids)} tokens have {len(value)} bytes, "
                    f"not {len(ids) * wire.F4.itemsize}"
                )
        logprobs, priorities = (np.frombuffer(value, wire.F4) for value in row)
        return Scores(0, ids, logprobs, priorities, cached=True)


def _opened(database: sqlite3.Connection, path: Path, provenance: Provenance | None) -> Provenance:
    """The provenance of the file, written first where it is empty and one is given."""
    with database:
        database.execute("BEGIN IMMEDIATE")  # of two processes that begin a store the other waits
        if provenance is not None and database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            for statement in _TABLES:
                database.execute(statement)
            rows = [(name, json.dumps(value)) for name, value in asdict(provenance).items()]
            database.executemany("INSERT INTO provenance VALUES (?, ?)", rows)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != _FORMAT:
            raise ConfigError(f"priorities.store: {path} is no store of scores, or of another version of this program")
        stored = dict(database.execute("SELECT field, value FROM provenance"))
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    return Provenance(**{name: json.loads(value) for name, value in stored.items()})


def _known(what: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise ConfigError(f"priorities: the server has no {what} {name!r}; it has {', '.join(known)}")
    return known[name]


def _parsed(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    parsed: dict[str, Any] = get_method(method).parse(params).model_dump(mode="json")
    return parsed


def _key(sent: Sent) -> bytes:
    ids, mask = (np.ascontiguousarray(sent[name], kind) for name, kind in (("token_ids", wire.U4), ("mask", wire.U1)))
    return hashlib.blake2b(ids.tobytes() + mask.tobytes(), digest_size=32).digest()


def _bytes(values: np.ndarray[Any, Any]) -> bytes:
    return values.astype(wire.F4).tobytes()
