"""Sketches of experts, by which copies are found."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "sketches",
        sa.Column("bundle", sa.String(64), sa.ForeignKey("bundles.digest"), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("bundle", name=op.f("pk_sketches")),
    )
