"""Keys: making them, and the table of their digests.

A key is `tp_<id>_<secret>`: 12 hexadecimal characters that name it in public, and 256 random bits in base64url. It is
shown once; the table holds the SHA-256 of the whole of it. A slow hash or a salt would add nothing: they protect what
people think of, and nobody can try 2^256 secrets. A revoked key keeps its row. Knows nothing of callers.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from tokenpriority_service.database.tables import api_key
from tokenpriority_service.teams.dialect import Clock, moment

FORM = re.compile(r"tp_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


class KeyRefused(ValueError):
    """A key cannot be rotated or revoked; the message is one line naming it."""


@dataclass(frozen=True, slots=True)
class Key:
    """A row of the table, without the digest. Times are seconds since the epoch."""

    id: str
    team: str
    scopes: frozenset[str]
    label: str
    created_at: float
    ends_at: float | None
    """When it ceased, or will cease, to be valid."""
    ended: bool = False


def digest_of(key: bytes) -> bytes:
    """What is kept of a key, 32 bytes."""
    return hashlib.sha256(key).digest()


def id_of(key: str) -> str | None:
    """The public part of a key, or None if it is not of our form."""
    match = FORM.fullmatch(key)
    return match[1] if match else None


def create(
    connection: sa.Connection,
    team: str,
    scopes: Iterable[str] = ("score",),
    label: str = "",
    *,
    clock: Clock = time.time,
) -> tuple[Key, str]:
    """Make a key: its row, and the key itself, which nothing can show again."""
    made = Key(secrets.token_hex(6), team, frozenset(scopes), label, moment(connection, clock), None)
    key = f"tp_{made.id}_{secrets.token_urlsafe(32)}"
    connection.execute(
        sa.insert(api_key).values(
            id=made.id,
            team=team,
            digest=digest_of(key.encode()),
            scopes=" ".join(sorted(made.scopes)),
            label=label,
            created_at=made.created_at,
        )
    )
    return made, key


def rotate(
    connection: sa.Connection,
    team: str,
    key_id: str | None = None,
    *,
    grace_seconds: float = 0.0,
    clock: Clock = time.time,
) -> tuple[Key, Key, str]:
    """Make a key in place of another: the old one as it now ends, the new one, and the new key itself.

    Without `key_id` it is the one key of the team that does not end. Raises KeyRefused.
    """
    old = _chosen(connection, team, key_id, clock, ending=False)
    new, key = create(connection, team, old.scopes, old.label, clock=clock)
    return _end(connection, old, moment(connection, clock) + grace_seconds), new, key


def revoke(connection: sa.Connection, team: str, key_id: str | None = None, *, clock: Clock = time.time) -> Key:
    """End a key now; without `key_id` the one key of the team. Raises KeyRefused."""
    old = _chosen(connection, team, key_id, clock, ending=True)
    return _end(connection, old, moment(connection, clock))


def all_keys(connection: sa.Connection, team: str | None = None, *, clock: Clock = time.time) -> list[Key]:
    """Every key that was ever made, of a team or of all; oldest first within a team."""
    now = moment(connection, clock)
    query = sa.select(api_key).order_by(api_key.c.team, api_key.c.created_at, api_key.c.id)
    return [
        _key(row, now) for row in connection.execute(query if team is None else query.where(api_key.c.team == team))
    ]


def any_key(connection: sa.Connection) -> bool:
    """Whether a key was ever made, valid or not."""
    return bool(connection.execute(_ANY).scalar_one())


_ANY = sa.select(sa.exists().select_from(api_key))


def _key(row: sa.Row[Any], now: float) -> Key:
    ended = row.ends_at is not None and row.ends_at <= now
    return Key(row.id, row.team, frozenset(row.scopes.split()), row.label, row.created_at, row.ends_at, ended)


def _chosen(connection: sa.Connection, team: str, key_id: str | None, clock: Clock, *, ending: bool) -> Key:
    """The key meant; `ending` says whether one in its grace can be meant without naming it."""
    keys = [key for key in all_keys(connection, team, clock=clock) if not key.ended]
    if key_id is not None:
        for key in keys:
            if key.id == key_id:
                return key
        raise KeyRefused(f"--key: team {team!r} has no valid key {key_id!r}")
    meant = [key for key in keys if ending or key.ends_at is None]
    if not meant:
        raise KeyRefused(f"--team: team {team!r} has no valid key")
    if len(meant) > 1:
        raise KeyRefused(f"--key: is required, team {team!r} has {len(meant)}: {', '.join(key.id for key in meant)}")
    return meant[0]


def _end(connection: sa.Connection, key: Key, ends_at: float) -> Key:
    """Let a key end then, unless it ends earlier."""
    ends_at = ends_at if key.ends_at is None else min(ends_at, key.ends_at)
    connection.execute(sa.update(api_key).where(api_key.c.id == key.id).values(ends_at=ends_at))
    return replace(key, ends_at=ends_at)
