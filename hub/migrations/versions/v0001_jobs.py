"""The table of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """From an empty database."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hub", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("completed_at", sa.Float),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.Text),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("rendering", sa.LargeBinary, nullable=False),
        sa.Column("result", sa.LargeBinary),
        sa.Column("error", sa.LargeBinary),
    )
    op.create_index("jobs_by_expiry", "jobs", ["expires_at"])
    op.create_index("jobs_by_owner", "jobs", ["owner", "created_at"])
    op.create_index(
        "jobs_by_idempotency_key",
        "jobs",
        ["idempotency_key", "owner", "created_at"],
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index("jobs_unfinished", "jobs", ["hub"], sqlite_where=sa.text("status IN ('queued', 'in_progress')"))
