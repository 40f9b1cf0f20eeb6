"""Statements of the table `evidence` for SQLite.

Python's sqlite3 gives up the interpreter's lock for every row it steps to, and may wait 5 ms each time to get it back.
So whatever the number of blocks, each statement here steps to one row, with all of them put together.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from tokenpriority_service.store.blocks import Block, Entry
from tokenpriority_service.store.statements import Added, Oldest

HEAD = struct.Struct(">32sBBH")
"""Of a block: key, start, top20, and the bytes of its evidence."""

INSERT_ROWS = 64
"""Rows of one INSERT; longer statements take longer for each row."""


def read(connection: sa.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Block]]:
    """See Statements."""
    return _blocks(connection, keys, "data")


def present(connection: sa.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Block]]:
    """See Statements."""
    return _blocks(connection, keys, "x''")


def insert(connection: sa.Connection, entries: Sequence[Entry], now: float) -> Added:
    """See Statements. Nobody else can write while this transaction lasts, so what is there can be looked up first."""
    there = {(key, block.start, block.top20) for key, block in present(connection, [entry.key for entry in entries])}
    new = [entry for entry in entries if (entry.key, entry.block.start, entry.block.top20) not in there]
    for first in range(0, len(new), INSERT_ROWS):
        rows = new[first : first + INSERT_ROWS]
        values = ((key, block.start, block.top20, number, block.evidence, now) for key, number, block in rows)
        _run(
            connection,
            "INSERT INTO evidence (key, start, top20, number, data, used_at) VALUES "
            + ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(rows)),
            itertools.chain.from_iterable(values),
        )
    return Added(sum(len(entry.block.evidence) for entry in new), len(new))


def touch(connection: sa.Connection, keys: Sequence[bytes], now: float, before: float) -> None:
    """See Statements."""
    _run(
        connection,
        f"UPDATE evidence SET used_at = ? WHERE key IN ({_marks(keys)}) AND used_at < ?",
        (now, *keys, before),
    )


def oldest(connection: sa.Connection, limit: int) -> list[Oldest]:
    """See Statements."""
    rows = _run(
        connection,
        "SELECT group_concat(printf('%!.17g %d %d %d', used_at, number, size, row), ',') FROM ("
        "SELECT used_at, number, length(data) AS size, rowid AS row FROM evidence "
        "ORDER BY used_at, number DESC LIMIT ?)",
        (limit,),
    ).scalar()
    fields = (row.split() for row in rows.split(",")) if rows else ()
    return [Oldest(float(used_at), int(number), int(size), row) for used_at, number, size, row in fields]


def delete(connection: sa.Connection, rows: Sequence[str]) -> None:
    """See Statements."""
    _run(connection, f"DELETE FROM evidence WHERE rowid IN ({_marks(rows)})", map(int, rows))


def _blocks(connection: sa.Connection, keys: Sequence[bytes], data: str) -> Iterator[tuple[bytes, Block]]:
    row: Any = _run(
        connection,
        "SELECT group_concat(hex(key) || printf('%02x%02x%04x', start, top20, length(evidence)), ''), "
        # Bytes are put together as if they were text, which changes none of them.
        "CAST(group_concat(evidence, '') AS BLOB) "
        f"FROM (SELECT key, start, top20, {data} AS evidence FROM evidence WHERE key IN ({_marks(keys)}))",
        keys,
    ).one()
    heads, joined = row
    end = 0
    for key, start, top20, size in HEAD.iter_unpack(bytes.fromhex(heads or "")):
        begin, end = end, end + size
        yield key, Block(start, bool(top20), joined[begin:end])


def _run(connection: sa.Connection, statement: str, parameters: Any) -> sa.CursorResult[Any]:
    return connection.exec_driver_sql(statement, tuple(parameters))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
