"""Alembic runs this to change the tables; the address comes from :func:`scdrugmap.web.database.migrate`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from scdrugmap.web.database import Base, connect

engine = connect(context.config.attributes["url"])
with engine.connect() as connection:
    if connection.dialect.name == "postgresql":
        # Web and worker may start at the same moment; the second one waits for the first.
        connection.execute(text("SELECT pg_advisory_lock(727274)"))
        connection.commit()
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
engine.dispose()
