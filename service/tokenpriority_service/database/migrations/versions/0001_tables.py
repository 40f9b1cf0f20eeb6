"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create teams, keys, allowances, usage and evidence."""
    op.create_table(
        "team",
        sa.Column("name", sa.String, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("concurrent_tokens", sa.BigInteger),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_team"),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("team", sa.String, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("scopes", sa.String, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("ends_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_api_key"),
    )
    op.create_index("ix_api_key_team", "api_key", ["team"])
    _create_quota()
    _create_evidence()


def _create_quota() -> None:
    op.create_table(
        "allowance",
        sa.Column("team", sa.String, nullable=False),
        sa.Column("tokens", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("team", name="pk_allowance"),
    )
    op.create_table(
        "in_flight",
        sa.Column("replica", sa.String, nullable=False),
        sa.Column("team", sa.String, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("replica", "team", name="pk_in_flight"),
    )
    op.create_table(
        "usage",
        sa.Column("team", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("rejections", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("team", "model", "hour", name="pk_usage"),
    )


def _create_evidence() -> None:
    op.create_table(
        "evidence",
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("start", sa.SmallInteger, nullable=False),
        sa.Column("top20", sa.SmallInteger, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("used_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("key", "start", "top20", name="pk_evidence"),
    )
    op.create_index("ix_evidence_used_at", "evidence", ["used_at", sa.text("number DESC")])
    op.create_table(
        "evidence_size",
        sa.Column("shard", sa.SmallInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("blocks", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("shard", name="pk_evidence_size"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Floating-point numbers do not compress: trying only takes time.
        op.execute("ALTER TABLE evidence ALTER COLUMN data SET STORAGE EXTERNAL")
