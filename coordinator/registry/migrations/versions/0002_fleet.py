"""Nodes, candidates, campaigns and what became of them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "nodes",
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("contributor", sa.String(64), nullable=False),
        sa.Column("public", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("bound", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_nodes"),
        sa.ForeignKeyConstraint(["contributor"], ["contributors.key"], name="fk_nodes_contributor_contributors"),
    )
    op.create_index("ix_nodes_contributor", "nodes", ["contributor"])
    op.create_table(
        "candidates",
        sa.Column("sequence", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("decision", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("sequence", name="pk_candidates"),
        sa.UniqueConstraint("digest", name="uq_candidates_digest"),
    )
    op.create_index("ix_candidates_state", "candidates", ["state"])
    op.create_table(
        "campaigns",
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("candidate", sa.String(64), nullable=False),
        sa.Column("open_until", sa.String(20), nullable=False),
        sa.Column("expires", sa.String(20), nullable=False),
        sa.Column("created", sa.String(20), nullable=False),
        sa.Column("conclusion", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_campaigns"),
    )
    op.create_index("ix_campaigns_state", "campaigns", ["state"])
    op.create_table(
        "answers",
        sa.Column("campaign", sa.Integer(), nullable=False),
        sa.Column("contributor", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(128), nullable=False),
        sa.Column("at", sa.String(20), nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("campaign", "contributor", name="pk_answers"),
        sa.ForeignKeyConstraint(["campaign"], ["campaigns.number"], name="fk_answers_campaign_campaigns"),
        sa.ForeignKeyConstraint(["contributor"], ["contributors.key"], name="fk_answers_contributor_contributors"),
    )
