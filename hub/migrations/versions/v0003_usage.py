"""The tables of what requests have used: pictures, tokens, a device's time, money."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

CHANGE = """
INSERT INTO usage_spent (owner, month, spent) VALUES ({row}.owner, {row}.month, {change})
ON CONFLICT (owner, month) DO UPDATE SET spent = spent + excluded.spent
"""


def upgrade() -> None:
    """Money is in millionths of a US dollar, and a device's time in microseconds: sums of integers are exact.

    SQLite itself keeps what each key has spent in a month: a budget's question must not take longer with every use.
    """
    op.create_table(
        "usage",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hub", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("asked", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("text_tokens", sa.Integer, nullable=False),
        sa.Column("image_tokens", sa.Integer, nullable=False),
        sa.Column("output_tokens", sa.Integer, nullable=False),
        sa.Column("device_us", sa.Integer, nullable=False),
        sa.Column("cost", sa.Integer, nullable=False),
    )
    op.create_index("usage_by_time", "usage", ["created_at"])
    op.create_table(
        "usage_spent",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("month", sa.Text, primary_key=True),
        sa.Column("spent", sa.Integer, nullable=False),
    )
    for event, row, change in (
        ("INSERT", "NEW", "NEW.cost"),
        ("UPDATE", "NEW", "NEW.cost - OLD.cost"),
        ("DELETE", "OLD", "-OLD.cost"),
    ):
        body = CHANGE.format(row=row, change=change)
        name = f"usage_{event.lower()}"
        op.execute(f"CREATE TRIGGER {name} AFTER {event} ON usage WHEN {change} != 0 BEGIN {body}; END")
