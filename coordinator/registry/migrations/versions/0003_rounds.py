"""Rounds of campaigns, and what nodes learnt in them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rounds",
        sa.Column("campaign", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("ends", sa.String(20), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.Column("noise", sa.Double(), nullable=True),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("campaign", "number", name="pk_rounds"),
        sa.ForeignKeyConstraint(["campaign"], ["campaigns.number"], name="fk_rounds_campaign_campaigns"),
    )
    op.create_index("ix_rounds_sha256", "rounds", ["sha256"])
    op.create_table(
        "updates",
        sa.Column("campaign", sa.Integer(), nullable=False),
        sa.Column("contributor", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("campaign", "contributor", name="pk_updates"),
        sa.ForeignKeyConstraint(["campaign"], ["campaigns.number"], name="fk_updates_campaign_campaigns"),
        sa.ForeignKeyConstraint(["contributor"], ["contributors.key"], name="fk_updates_contributor_contributors"),
    )
