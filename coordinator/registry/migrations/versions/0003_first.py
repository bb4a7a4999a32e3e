"""Where upgrades begin: a new registry is made from `coordinator.registry.tables`, an older one has these tables."""

revision = "0003"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing."""
