"""By what its pictures were drawn, so that the next request for the same finds them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Jobs of before have no recipe: nothing tells with what model they were drawn."""
    op.add_column("jobs", sa.Column("recipe", sa.Text))
    op.create_index(
        "jobs_by_recipe",
        "jobs",
        ["recipe", "owner", "created_at"],
        sqlite_where=sa.text("recipe IS NOT NULL"),
    )
