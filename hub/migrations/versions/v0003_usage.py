"""The table of what requests have used: pictures, tokens, a device's time, money."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Money is in millionths of a US dollar, and a device's time in microseconds: sums of integers are exact."""
    op.create_table(
        "usage",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hub", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("asked", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("text_tokens", sa.Integer, nullable=False),
        sa.Column("image_tokens", sa.Integer, nullable=False),
        sa.Column("output_tokens", sa.Integer, nullable=False),
        sa.Column("device_us", sa.Integer, nullable=False),
        sa.Column("cost", sa.Integer, nullable=False),
    )
    op.create_index("usage_by_time", "usage", ["created_at"])
    # A budget's question is answered from it alone; what cost nothing is not in it.
    op.create_index("usage_spent", "usage", ["owner", "created_at", "cost"], sqlite_where=sa.text("cost > 0"))
