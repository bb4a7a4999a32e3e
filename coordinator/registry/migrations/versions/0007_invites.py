"""Invites and who came by which, and keys that took others' places."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and the column."""
    op.create_table(
        "invites",
        sa.Column("name", sa.String(8), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("made", sa.String(20), nullable=False),
        sa.Column("expires", sa.String(20), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_invites")),
        sa.UniqueConstraint("sha256", name=op.f("uq_invites_sha256")),
    )
    op.create_table(
        "rotations",
        sa.Column("new", sa.String(64), nullable=False),
        sa.Column("old", sa.String(64), nullable=False),
        sa.Column("contributor", sa.String(64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("rotated", sa.String(20), nullable=False),
        sa.ForeignKeyConstraint(
            ["contributor"], ["contributors.key"], name=op.f("fk_rotations_contributor_contributors")
        ),
        sa.PrimaryKeyConstraint("new", name=op.f("pk_rotations")),
        sa.UniqueConstraint("old", name=op.f("uq_rotations_old")),
    )
    op.create_index(op.f("ix_rotations_contributor"), "rotations", ["contributor"])
    op.add_column("contributors", sa.Column("invite", sa.String(8), nullable=True))
