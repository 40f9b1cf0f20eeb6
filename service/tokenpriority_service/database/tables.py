"""The tables, once: SQLite and PostgreSQL have the same.

Knows columns, keys and indexes. Knows no queries: each table has one module that asks it. Times are seconds since the
epoch, UTC.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    text,
)

metadata = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"},
)

team = Table(
    "team",
    metadata,
    Column("name", String, primary_key=True),
    Column("weight", Double, nullable=False),
    Column("tokens_per_minute", BigInteger),
    Column("concurrent_tokens", BigInteger),
    Column("created_at", Double, nullable=False),
)
"""Limits of the teams that have any of their own; NULL is no limit."""

api_key = Table(
    "api_key",
    metadata,
    Column("id", String, primary_key=True),
    Column("team", String, nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("scopes", String, nullable=False),
    Column("label", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ends_at", Double),
)
"""Keys: `id` is the public part, `digest` the SHA-256 of the whole key, `scopes` their names with a space between. From
`ends_at` on a key is revoked; rows are never deleted, so that revoking the last key does not open a server."""

allowance = Table(
    "allowance",
    metadata,
    Column("team", String, primary_key=True),
    Column("tokens", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
)
"""What is left of a team's tokens per minute, as of `updated_at`: a token bucket."""

in_flight = Table(
    "in_flight",
    metadata,
    Column("replica", String, primary_key=True),
    Column("team", String, primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("seen_at", Double, nullable=False),
)
"""Tokens each replica has queued or in an engine for a team; a row not seen for a while is of a replica that died."""

usage = Table(
    "usage",
    metadata,
    Column("team", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("hour", BigInteger, primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("rejections", BigInteger, nullable=False),
)
"""What each team used of each model in the hour that began at `hour`. `tokens` were submitted, `cached_tokens` of them
came from the store."""

evidence = Table(
    "evidence",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("start", SmallInteger, primary_key=True),
    Column("top20", SmallInteger, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("used_at", Double, nullable=False),
    Index("ix_evidence_used_at", "used_at", text("number DESC")),
)
"""Blocks of evidence (see `store.blocks`), never changed but for `used_at`. One content may be there with several
`start`s: whichever covers what is wanted will do. Eviction goes by `used_at`, and of equal ones from the end of a
sequence, `number` being the place of the block in it."""

evidence_size = Table(
    "evidence_size",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("blocks", BigInteger, nullable=False),
)
"""Sums over `evidence`, in parts so that replicas do not wait for one another;
kept in the transactions that change it."""
