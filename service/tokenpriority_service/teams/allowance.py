"""What is left of each team's tokens per minute: a token bucket, in SQL.

A bucket holds `tokens_per_minute` when full, and refills continuously to full within a minute; so no minute sees more
than twice the limit, and no hour more than 61 times. The row of a team is also its lock: who has changed it in a
transaction is alone with the team, over all replicas, until the transaction ends. Knows nothing of who asks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa

from tokenpriority_service.database.tables import allowance
from tokenpriority_service.teams.dialect import Clock, Upsert, at, greatest, insert, least, now

SECONDS = 60.0

_team = sa.bindparam("of", type_=sa.String)
_capacity = sa.bindparam("capacity", type_=sa.Double)
_tokens = sa.bindparam("taken", type_=sa.Double)
_refund = sa.bindparam("refund", type_=sa.Double)


def take(connection: sa.Connection, team: str, capacity: int, tokens: int, refund: int, clock: Clock) -> float | None:
    """Take tokens out of a bucket, once `refund` was put back; what is left, or None if it holds fewer.

    Either way the team is locked. Atomic, in one statement: replicas cannot take the same tokens.
    """
    dialect = connection.dialect.name
    values = {"of": team, "capacity": capacity, "taken": tokens, "refund": refund, **at(dialect, clock)}
    rest: Any = connection.execute(_take(dialect), values).scalar_one_or_none()
    return None if rest is None else float(rest)


def left(connection: sa.Connection, team: str, capacity: int, refund: int, clock: Clock) -> float:
    """What a bucket holds, were `refund` put back."""
    dialect = connection.dialect.name
    values = {"of": team, "capacity": capacity, "refund": refund, **at(dialect, clock)}
    found: Any = connection.execute(_left(dialect), values).scalar_one_or_none()
    return float(capacity if found is None else found)


def put_back(connection: sa.Connection, team: str, refund: int, clock: Clock) -> None:
    """Put tokens back, which may be none, and lock the team. What overflows is cut off when the bucket is next read."""
    dialect = connection.dialect.name
    connection.execute(_put_back(dialect), {"of": team, "refund": refund, **at(dialect, clock)})


def seconds_until(tokens: float, capacity: int) -> float:
    """How long a bucket takes to gain tokens."""
    return max(tokens, 0.0) * SECONDS / capacity


def _refilled(dialect: str, at: sa.ColumnElement[float]) -> sa.ColumnElement[float]:
    """A bucket with what it gained since it was last changed; none if the clock was set back."""
    gained = greatest(dialect, 0.0, at - allowance.c.updated_at) * _capacity / SECONDS
    return least(dialect, _capacity, allowance.c.tokens + _refund + gained)


@cache
def _take(dialect: str) -> sa.Executable:
    new = insert(dialect, allowance).values(team=_team, tokens=_capacity - _tokens, updated_at=now(dialect))
    # One time for the whole statement, of before it waited for its turn: it never gains time twice.
    time = new.excluded.updated_at
    refilled = _refilled(dialect, time)
    changes = {"tokens": refilled - _tokens, "updated_at": greatest(dialect, time, allowance.c.updated_at)}
    taken: Upsert = new.on_conflict_do_update(
        index_elements=[allowance.c.team], set_=changes, where=refilled >= _tokens
    )
    return taken.returning(allowance.c.tokens)


@cache
def _left(dialect: str) -> sa.Select[Any]:
    return sa.select(_refilled(dialect, now(dialect))).where(allowance.c.team == _team)


@cache
def _put_back(dialect: str) -> sa.Executable:
    new = insert(dialect, allowance).values(team=_team, tokens=_refund, updated_at=now(dialect))
    return new.on_conflict_do_update(index_elements=[allowance.c.team], set_={"tokens": allowance.c.tokens + _refund})
