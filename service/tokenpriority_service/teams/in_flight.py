"""Tokens that replicas have in flight for each team, in SQL.

A replica writes its own rows and reads those of the others. A row nobody has touched for `EXPIRY_SECONDS` is of a
replica that died, and counts no more. Whoever reads to decide holds the lock of the team (see `allowance`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa

from tokenpriority_service.database.tables import in_flight
from tokenpriority_service.teams.dialect import Clock, at, insert, now

EXPIRY_SECONDS = 30.0

_replica = sa.bindparam("by", type_=sa.String)
_team = sa.bindparam("of", type_=sa.String)


def others(connection: sa.Connection, replica: str, team: str, clock: Clock) -> int:
    """Tokens that the other replicas have in flight for a team."""
    dialect = connection.dialect.name
    values = {"by": replica, "of": team, **at(dialect, clock)}
    return int(connection.execute(_others(dialect), values).scalar_one())


def write(connection: sa.Connection, replica: str, team: str, tokens: int, clock: Clock) -> None:
    """Say what this replica has in flight for a team, now; also forget replicas that died."""
    dialect = connection.dialect.name
    values = {"by": replica, "of": team, **at(dialect, clock)}
    connection.execute(_forget(dialect), values)
    if tokens:
        connection.execute(_write(dialect), {**values, "held": tokens})


def hold(connection: sa.Connection, replica: str, team: str, tokens: int, clock: Clock) -> None:
    """`write` of more than none, without looking after the others."""
    dialect = connection.dialect.name
    values = {"by": replica, "of": team, "held": tokens, **at(dialect, clock)}
    connection.execute(_write(dialect), values)


def leave(connection: sa.Connection, replica: str) -> None:
    """Forget all that this replica said."""
    connection.execute(sa.delete(in_flight).where(in_flight.c.replica == replica))


def _dead(dialect: str) -> sa.ColumnElement[bool]:
    return in_flight.c.seen_at <= now(dialect) - EXPIRY_SECONDS


@cache
def _others(dialect: str) -> sa.Select[Any]:
    total = sa.func.coalesce(sa.func.sum(in_flight.c.tokens), 0)
    return sa.select(total).where(in_flight.c.team == _team, in_flight.c.replica != _replica, ~_dead(dialect))


@cache
def _write(dialect: str) -> sa.Executable:
    held = sa.bindparam("held", type_=sa.BigInteger)
    new = insert(dialect, in_flight).values(replica=_replica, team=_team, tokens=held, seen_at=now(dialect))
    return new.on_conflict_do_update(
        index_elements=[in_flight.c.replica, in_flight.c.team],
        set_={"tokens": new.excluded.tokens, "seen_at": new.excluded.seen_at},
    )


@cache
def _forget(dialect: str) -> sa.Delete:
    return sa.delete(in_flight).where(
        in_flight.c.team == _team, sa.or_(in_flight.c.replica == _replica, _dead(dialect))
    )
