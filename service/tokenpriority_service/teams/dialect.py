"""Where the SQL of SQLite and PostgreSQL differs.

Knows upserts, least and greatest, and whose clock counts. Knows no tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

Clock = Callable[[], float]
"""Seconds since the epoch."""
Upsert = postgresql.Insert | sqlite.Insert


def insert(dialect: str, table: sa.Table) -> Upsert:
    """An INSERT that can say ON CONFLICT."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def now(dialect: str) -> sa.ColumnElement[float]:
    """The time within a statement.

    PostgreSQL's own, since the clocks of replicas on several machines differ (`clock_timestamp`, for `now()` stands
    still in a transaction). With SQLite all are on one machine: the parameter `now`, which `at` gives.
    """
    if dialect == "postgresql":
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
    return sa.bindparam("now", type_=sa.Double)


def at(dialect: str, clock: Clock) -> dict[str, float]:
    """The parameters that a statement with `now` needs."""
    return {} if dialect == "postgresql" else {"now": clock()}


def moment(connection: sa.Connection, clock: Clock) -> float:
    """The time, asked for by itself."""
    dialect = connection.dialect.name
    return float(connection.execute(sa.select(now(dialect)), at(dialect, clock)).scalar_one())


def least(dialect: str, *values: Any) -> sa.ColumnElement[Any]:
    """The least of some values."""
    return sa.func.least(*values) if dialect == "postgresql" else sa.func.min(*values)


def greatest(dialect: str, *values: Any) -> sa.ColumnElement[Any]:
    """The greatest of some values."""
    return sa.func.greatest(*values) if dialect == "postgresql" else sa.func.max(*values)
