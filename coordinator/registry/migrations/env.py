"""Alembic's door: runs the migrations on the connection that `database.migrate` hands over."""

from alembic import context

from coordinator.registry.tables import RegistryTable

context.configure(connection=context.config.attributes["connection"], target_metadata=RegistryTable.metadata)
with context.begin_transaction():
    context.run_migrations()
