"""What Alembic runs to migrate: on the connection it was given, inside the transaction that is open there."""

from __future__ import annotations

from alembic import context

from tokenpriority_service.database.tables import metadata

connection = context.config.attributes["connection"]
# SQLite too undoes CREATE and ALTER with the transaction: `database.database` begins it in earnest.
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
