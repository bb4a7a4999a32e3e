"""The tree of the transparency log, over every event that there is, and what witnesses sign."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

from coordinator.registry.log import fill

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and grow the tree."""
    op.create_table(
        "log_nodes",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_log_nodes")),
    )
    op.create_table(
        "cosigned",
        sa.Column("witness", sa.String(300), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("witness", name=op.f("pk_cosigned")),
    )
    with Session(op.get_bind()) as session:
        fill(session)
        session.flush()
