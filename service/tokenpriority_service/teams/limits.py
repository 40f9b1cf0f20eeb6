"""The limits of teams: the table, and what the configuration file says before it.

A team that the file declares has the file's limits, whole; any other has those of its row, or none. Knows nothing of
how a limit is kept.
"""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa

from tokenpriority_service.database.tables import team as table
from tokenpriority_service.teams.caller import Limits
from tokenpriority_service.teams.dialect import Clock, insert, moment

COLUMNS = (table.c.weight, table.c.tokens_per_minute, table.c.concurrent_tokens)


def of_row(row: Any) -> Limits:
    """The limits in a row that holds `COLUMNS`; all are NULL where an outer join found no team."""
    return Limits() if row.weight is None else Limits(row.weight, row.tokens_per_minute, row.concurrent_tokens)


def get_limits(connection: sa.Connection, team: str) -> Limits:
    """The limits of a team's row; without one there are none."""
    row = connection.execute(sa.select(*COLUMNS).where(table.c.name == team)).one_or_none()
    return Limits() if row is None else of_row(row)


def set_limits(connection: sa.Connection, team: str, limits: Limits, *, clock: Clock = time.time) -> None:
    """Write a team's row; it holds from the next request on."""
    values = {
        "weight": limits.weight,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrent_tokens": limits.concurrent_tokens,
    }
    new = insert(connection.dialect.name, table).values(name=team, created_at=moment(connection, clock), **values)
    connection.execute(new.on_conflict_do_update(index_elements=[table.c.name], set_=values))


def all_limits(connection: sa.Connection) -> dict[str, Limits]:
    """The limits of every team that has a row."""
    return {row.name: of_row(row) for row in connection.execute(sa.select(table.c.name, *COLUMNS))}
