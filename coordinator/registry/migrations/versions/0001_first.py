"""Contributors, uploads, bundles, releases, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "contributors",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("enrolled", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_contributors"),
        sa.UniqueConstraint("name", name="uq_contributors_name"),
    )
    op.create_table(
        "uploads",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("contributor", sa.String(64), nullable=False),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_uploads"),
        sa.ForeignKeyConstraint(["contributor"], ["contributors.key"], name="fk_uploads_contributor_contributors"),
    )
    op.create_index("ix_uploads_contributor", "uploads", ["contributor"])
    op.create_table(
        "bundles",
        sa.Column("sequence", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("contributor", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("receipt", sa.LargeBinary(), nullable=False),
        sa.Column("received", sa.String(20), nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("release", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_bundles"),
        sa.UniqueConstraint("digest", name="uq_bundles_digest"),
        sa.ForeignKeyConstraint(["contributor"], ["contributors.key"], name="fk_bundles_contributor_contributors"),
    )
    op.create_index("ix_bundles_contributor", "bundles", ["contributor"])
    op.create_index("ix_bundles_state", "bundles", ["state"])
    op.create_table(
        "bundle_files",
        sa.Column("bundle", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bundle", "name", name="pk_bundle_files"),
        sa.ForeignKeyConstraint(["bundle"], ["bundles.digest"], name="fk_bundle_files_bundle_bundles"),
    )
    op.create_index("ix_bundle_files_sha256", "bundle_files", ["sha256"])
    op.create_table(
        "releases",
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_releases"),
        sa.UniqueConstraint("digest", name="uq_releases_digest"),
    )
    op.create_table(
        "events",
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("at", sa.String(20), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_events"),
    )
    op.create_index("ix_events_subject", "events", ["subject"])
