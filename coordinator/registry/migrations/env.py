"""Alembic's door: runs the migrations on the connection that `database.migrate` hands over."""

from alembic import context

from coordinator.registry.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
with context.begin_transaction():
    context.run_migrations()
