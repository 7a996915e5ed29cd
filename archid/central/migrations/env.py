"""Alembic's entry point: runs the steps on the connection that `archid.central.store` hands over.

There is no alembic.ini and no offline mode. The caller has begun the transaction and commits it,
so a step that fails leaves the database as it was.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from archid.central.tables import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite cannot alter most things in place: later steps copy the table instead.
    render_as_batch=connection.dialect.name == "sqlite",
)
context.run_migrations()
