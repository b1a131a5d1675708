"""One file a revision, loaded by alembic."""
