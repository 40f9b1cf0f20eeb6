"""Statements of the table `evidence` for PostgreSQL.

Several replicas write at once. None waits for another in a circle: who inserts does so in the order of the keys, and
who touches or evicts passes over rows that somebody else holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from tokenpriority_service.store.blocks import Block, Entry
from tokenpriority_service.store.statements import Added, Oldest

INSERT = """
    WITH added AS (
        INSERT INTO evidence (key, start, top20, number, data, used_at)
        SELECT given.*, %b::float8
        FROM unnest(%b::bytea[], %b::smallint[], %b::smallint[], %b::integer[], %b::bytea[]) AS given
        ON CONFLICT DO NOTHING
        RETURNING octet_length(data) AS size
    )
    SELECT coalesce(sum(size), 0)::bigint, count(*) FROM added
"""

TOUCH = """
    UPDATE evidence SET used_at = %b::float8 WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM evidence WHERE key = ANY(%b::bytea[]) AND used_at < %b::float8 FOR UPDATE SKIP LOCKED
    ))
"""

OLDEST = """
    SELECT used_at, number, octet_length(data), ctid::text FROM evidence
    ORDER BY used_at, number DESC LIMIT %b FOR UPDATE SKIP LOCKED
"""


def read(connection: sa.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Block]]:
    """See Statements."""
    return _blocks(connection, keys, "data")


def present(connection: sa.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Block]]:
    """See Statements."""
    return _blocks(connection, keys, "''::bytea")


def insert(connection: sa.Connection, entries: Sequence[Entry], now: float) -> Added:
    """See Statements."""
    rows = sorted(entries, key=lambda entry: (entry.key, entry.block.start, entry.block.top20))
    keys = [entry.key for entry in rows]
    starts = [entry.block.start for entry in rows]
    top20s = [int(entry.block.top20) for entry in rows]
    numbers = [entry.number for entry in rows]
    data = [entry.block.evidence for entry in rows]
    return Added(*_run(connection, INSERT, (now, keys, starts, top20s, numbers, data))[0])


def touch(connection: sa.Connection, keys: Sequence[bytes], now: float, before: float) -> None:
    """See Statements."""
    _run(connection, TOUCH, (now, list(keys), before))


def oldest(connection: sa.Connection, limit: int) -> list[Oldest]:
    """See Statements."""
    return [Oldest(*row) for row in _run(connection, OLDEST, (limit,))]


def delete(connection: sa.Connection, rows: Sequence[str]) -> None:
    """See Statements."""
    _run(connection, "DELETE FROM evidence WHERE ctid = ANY(%s::tid[])", (list(rows),))


def _blocks(connection: sa.Connection, keys: Sequence[bytes], data: str) -> Iterator[tuple[bytes, Block]]:
    query = f"SELECT key, start, top20, {data} FROM evidence WHERE key = ANY(%b::bytea[])"
    for key, start, top20, evidence in _run(connection, query, (list(keys),)):
        yield key, Block(start, bool(top20), evidence)


def _run(connection: sa.Connection, statement: str, parameters: Sequence[Any]) -> list[Any]:
    """Rows of a statement. The driver's own cursor: as text, SQLAlchemy's way, bytes take twice the time."""
    driver: Any = connection.connection
    with driver.cursor(binary=True) as cursor:
        cursor.execute(statement, parameters)
        rows: list[Any] = cursor.fetchall() if cursor.description is not None else []
    return rows
