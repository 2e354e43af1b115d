"""Alembic's entry: runs the steps on the connection that `database.py` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from chimera.store.schema import metadata

connection: Connection = context.config.attributes["connection"]
# SQLite can take back table changes; saying so makes a migration that is killed leave nothing behind.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
