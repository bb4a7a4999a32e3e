"""Is every byte that the registry promises there and right? And what is there that nothing needs?"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from coordinator.registry.registry import Registry
from coordinator.storage.blobs import Store
from protocol.documents import read_timestamp
from protocol.spec import StatisticsFile


@dataclass(frozen=True)
class Findings:
    """What a check of the store found; files are named by their digests."""

    files: int
    """Files that pool and bundles need; nothing is needed of what was refused or yanked, which never comes back."""
    missing: tuple[str, ...]
    """What is needed and is not there."""
    damaged: tuple[str, ...]
    """Under what other bytes lie, or none that can be read."""
    orphans: tuple[str, ...]
    """What neither a bundle nor an open upload needs."""
    young: tuple[str, ...]
    """Orphans that came after the newest bundle, which a newer registry may know: always kept."""
    dropped: tuple[str, ...]
    """Orphans that are gone now."""

    @property
    def healthy(self) -> bool:
        """Nothing that a bundle needs is missing or damaged."""
        return not self.missing and not self.damaged


def check_store(
    registry: Registry,
    store: Store,
    *,
    now: datetime,
    delete: timedelta | None = None,
    statistics: StatisticsFile | None = None,
) -> Findings:
    """Digest every stored file, and drop old orphans if asked to.

    Args:
        registry: Knows what is needed.
        store: Where the files are; must not be written meanwhile if anything is to be dropped.
        now: The time.
        delete: Age from which on orphans are dropped; None to drop none.
        statistics: The pool's own file, which is needed as long as the pool is.
    """
    present = set(store.digests())
    needed, newest = registry.bundles.files(), registry.bundles.newest()
    if statistics is not None:
        needed.add(statistics.sha256)
    horizon = read_timestamp(newest.received) if newest else datetime.min.replace(tzinfo=UTC)
    orphans = {sha256: store.kept_since(sha256) for sha256 in present - needed - registry.uploads.files()}
    old = [sha256 for sha256, since in orphans.items() if delete is not None and since < min(horizon, now - delete)]
    return Findings(
        files=len(needed),
        missing=tuple(sorted(needed - present)),
        damaged=tuple(sha256 for sha256 in sorted(needed & present) if not store.verify(sha256)),
        orphans=tuple(sorted(orphans)),
        young=tuple(sorted(sha256 for sha256, since in orphans.items() if since >= horizon)),
        dropped=tuple(sorted(filter(store.remove, old))),
    )
