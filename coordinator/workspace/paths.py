"""What lies where in an operator's folder."""

from pathlib import Path


class CoordinatorWorkspace:
    """A coordinator's folder and what lies where in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "coordinator.toml"
        """The settings file; a folder that has it is a workspace."""
        self.key = folder / "coordinator.key"
        """The pool's private key: it signs the pool, and all else while nobody else has the duty."""
        self.sketches = folder / "sketches.key"
        """Draws the sketches by which copies of experts are found; never sent."""
        self.roles = folder / "roles"
        """Keys and metadata of the roles that say which release is the newest."""
        self.roots = self.roles / "root"
        """Every version of the role root."""
        self.acts = folder / "acts"
        """What operators decided together, signed."""
        self.pool = folder / "pool.dsse.json"
        """The signed pool."""
        self.published = folder / "published.dsse.json"
        """The newest release that left the workspace."""
        self.acknowledged = folder / "acknowledged.dsse.json"
        """The newest receipt that left the workspace."""
        self.checkpoint = folder / "checkpoint.txt"
        """The newest checkpoint of the log that was signed."""
        self.entries = folder / "log.jsonl"
        """Every entry of the log that was signed for, one a line."""
        self.spool = folder / "spool"
        """Files on their way in."""
        self.bundles = folder / "cache" / "bundles"
        """Bundle folders rebuilt from the store; may be deleted at any time."""
        self.figures = folder / "cache" / "figures"
        """What was measured of each expert; may be deleted at any time."""
        self.fingerprint = folder / "cache" / "base.json"
        """Remembers the base model's fingerprint; may be deleted at any time."""

    def lock(self, process: str) -> Path:
        """The lock that one process of a kind holds."""
        return self.folder / f"{process}.lock"
