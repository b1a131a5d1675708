"""Run by alembic for every upgrade. The transaction is the caller's, who may have more to do in it."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
