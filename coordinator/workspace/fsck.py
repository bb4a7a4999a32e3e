"""Is every byte that the registry promises there and right? And what is there that nothing needs?"""

from dataclasses import dataclass

from coordinator.registry.registry import Registry
from coordinator.storage.blobs import Store


@dataclass(frozen=True)
class Findings:
    """What a check of the store found."""

    files: int
    """Files that bundles need."""
    missing: tuple[str, ...]
    """Digests that bundles need and nothing lies under."""
    damaged: tuple[str, ...]
    """Digests under which other bytes lie."""
    orphans: tuple[str, ...]
    """Digests that no bundle needs: dropped."""
    leftovers: int
    """Incomplete files that were dropped."""

    @property
    def healthy(self) -> bool:
        """Nothing that a bundle needs is missing or damaged."""
        return not self.missing and not self.damaged


def check_store(registry: Registry, store: Store) -> Findings:
    """Digest every stored file, and drop orphans and leftovers.

    Must not run beside `serve`: between a store and its row every new file is an orphan.
    """
    needed = registry.bundles.files()
    present = set(store.digests())
    orphans = sorted(present - needed.keys())
    for sha256 in orphans:
        store.remove(sha256)
    return Findings(
        files=len(needed),
        missing=tuple(sorted(needed.keys() - present)),
        damaged=tuple(sha256 for sha256 in sorted(needed.keys() & present) if not store.verify(sha256)),
        orphans=tuple(orphans),
        leftovers=store.sweep_leftovers(),
    )
