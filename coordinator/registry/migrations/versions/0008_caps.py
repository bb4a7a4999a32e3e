"""Caps on what experts take, which releases name by digest."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; the worker fits the newest release's when it starts."""
    op.create_table(
        "caps",
        sa.Column("fitted_for", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("fitted_for", name=op.f("pk_caps")),
    )
    op.create_index(op.f("ix_caps_sha256"), "caps", ["sha256"])
