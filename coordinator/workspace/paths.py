"""What lies where in an operator's folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CoordinatorWorkspace:
    """A coordinator's folder and what lies where in it."""

    folder: Path

    @property
    def settings(self) -> Path:
        """The settings file; a folder that has it is a workspace."""
        return self.folder / "coordinator.toml"

    @property
    def key(self) -> Path:
        """The private key that signs pool, releases and receipts."""
        return self.folder / "coordinator.key"

    @property
    def pool(self) -> Path:
        """The signed pool."""
        return self.folder / "pool.dsse.json"

    @property
    def published(self) -> Path:
        """The newest release that left the workspace."""
        return self.folder / "published.dsse.json"

    @property
    def acknowledged(self) -> Path:
        """The newest receipt that left the workspace."""
        return self.folder / "acknowledged.dsse.json"

    @property
    def spool(self) -> Path:
        """Files on their way in."""
        return self.folder / "spool"

    @property
    def bundles(self) -> Path:
        """Bundle folders rebuilt from the store; may be deleted at any time."""
        return self.folder / "cache" / "bundles"

    @property
    def fingerprint(self) -> Path:
        """Remembers the base model's fingerprint; may be deleted at any time."""
        return self.folder / "cache" / "base.json"

    def lock(self, process: str) -> Path:
        """The lock that one process of a kind holds."""
        return self.folder / f"{process}.lock"
