"""From the Authorization header of a request to its caller.

Knows digests of keys, never keys. Every request asks the database once, and nothing it answers is kept, so that a key
made or revoked, or a limit set, holds from the next request on, on every replica. Knows nothing of routes.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa

from tokenpriority.errors import Forbidden, Unauthorized
from tokenpriority_service.configuration.settings import TeamSettings
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.tables import api_key
from tokenpriority_service.database.tables import team as team_table
from tokenpriority_service.teams.caller import OPEN, Caller, Limits, Scope
from tokenpriority_service.teams.dialect import Clock, at, now
from tokenpriority_service.teams.keys import any_key, digest_of, id_of
from tokenpriority_service.teams.limits import COLUMNS, of_row

NOBODY = bytes(32)
"""The digest that a key with an unknown id is compared with: no key has it."""


class Directory:
    """The callers of a server: those with a key in the database, and those with one in the configuration file."""

    def __init__(self, database: Database, teams: Mapping[str, TeamSettings], clock: Clock = time.time) -> None:
        self._database = database
        self._clock = clock
        self._limits = {name: Limits.declared(team) for name, team in teams.items()}
        self._digests = {name: bytes.fromhex(team.key_sha256) for name, team in teams.items() if team.key_sha256}
        self._closed = bool(self._digests)
        """Whether a key is known to have been made. Keys are never deleted: once true, this stays true."""

    async def caller(self, authorization: str | None, scope: Scope = "score") -> Caller:
        """The caller with this header. Raises Unauthorized, Forbidden (the key lacks the scope) or Unavailable."""
        if await self.open():
            return OPEN
        sent = _bearer(authorization)
        caller = self._of_file(sent) or await self._of_database(sent)
        if caller is None:
            raise Unauthorized("Authorization: unknown key")
        if scope not in caller.scopes:
            held = ", ".join(sorted(caller.scopes))
            raise Forbidden(f"Authorization: this needs a key of scope {scope}; this one has scope {held}")
        return caller

    async def open(self) -> bool:
        """Whether no key was ever made and the file has none: then anybody may do anything. Raises Unavailable."""
        return not self._closed and self._is_open(await self._database.read(any_key))

    def open_now(self) -> bool:
        """`open`, in the calling thread."""
        return not self._closed and self._is_open(self._database.read_now(any_key))

    def _is_open(self, any_key: bool) -> bool:
        self._closed = any_key
        return not any_key

    def _of_file(self, sent: bytes) -> Caller | None:
        digest = digest_of(sent)
        # Every digest is compared, each in constant time, so that timing tells nothing of which one matched.
        matches = [name for name, known in self._digests.items() if hmac.compare_digest(known, digest)]
        return Caller(matches[0], frozenset(("score",)), self._limits[matches[0]]) if matches else None

    async def _of_database(self, sent: bytes) -> Caller | None:
        key_id = id_of(sent.decode("latin-1"))
        if key_id is None:
            return None  # of no form we ever made: its sender knows that
        row = await self._database.read(lambda connection: self._look_up(connection, key_id))
        # An unknown id takes the same path as a wrong secret.
        matches = hmac.compare_digest(NOBODY if row is None else row.digest, digest_of(sent))
        if row is None or not matches or row.ended:
            return None
        scopes = frozenset(row.scopes.split())
        scopes |= {"score"} if "admin" in scopes else set()
        return Caller(row.team, scopes, self._limits.get(row.team) or of_row(row))

    def _look_up(self, connection: sa.Connection, key_id: str) -> sa.Row[Any] | None:
        dialect = self._database.dialect
        return connection.execute(_query(dialect), {"of": key_id, **at(dialect, self._clock)}).one_or_none()


@cache
def _query(dialect: str) -> sa.Select[Any]:
    """A key by its id, with the limits of its team: one round trip."""
    ended = sa.func.coalesce(api_key.c.ends_at <= now(dialect), sa.false()).label("ended")
    return (
        sa.select(api_key.c.team, api_key.c.digest, api_key.c.scopes, ended, *COLUMNS)
        .outerjoin(team_table, team_table.c.name == api_key.c.team)
        .where(api_key.c.id == sa.bindparam("of"))
    )


def _bearer(authorization: str | None) -> bytes:
    """The key in a header, as the bytes that were sent. Raises Unauthorized if there is none."""
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("Authorization: this server needs a key, as 'Bearer KEY'")
    return key.strip().encode("latin-1")  # as which header values reach us decoded
