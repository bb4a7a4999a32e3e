"""Drops the bytes of what was refused, after some days, while uploads go on."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Lock

import structlog

from coordinator.policy.stored import StoredLimits
from coordinator.policy.switches import Switch
from coordinator.registry.registry import Registry
from coordinator.storage.blobs import Store
from protocol.spec import StatisticsFile

EVERY = timedelta(hours=1)
"""How often it is looked for bytes to drop."""
_log = structlog.get_logger(__name__)


class RefusedBytes:
    """The bytes of refused bundles in a store that this process alone writes.

    A file that comes in just now is spared: its row is written after its bytes, and between the two nothing but this
    process knows that they are needed.
    """

    def __init__(
        self, registry: Registry, store: Store, statistics: StatisticsFile | None, limits: StoredLimits
    ) -> None:
        self._registry, self._store, self._limits = registry, store, limits
        self._own = {statistics.sha256} if statistics else set()
        self._lock, self._coming, self._dropped = Lock(), Counter[str](), set[str]()
        self._next: datetime | None = None

    @contextmanager
    def spared(self, files: Iterable[str]) -> Iterator[None]:
        """Drop none of some files for as long as the block runs."""
        held = list(files)
        with self._lock:
            self._coming.update(held)
        try:
            yield
        finally:
            with self._lock:
                self._coming.subtract(held)

    def sweep(self, now: datetime) -> None:
        """Drop what is due, once an hour; nothing while the registry is read-only."""
        with self._lock:
            if (self._next and now < self._next) or Switch.REGISTRY in self._registry.switches.thrown():
                return
            self._next = now + EVERY
            due = self._registry.bundles.files_of_refused(self._limits.horizon(now))
            due = {digest: files for digest, files in due.items() if digest not in self._dropped}
            if not due:
                return
            needed = self._registry.bundles.files() | self._registry.uploads.files() | self._own | set(+self._coming)
            gone = sum(map(self._store.remove, set().union(*due.values()) - needed))
            self._dropped.update(due)
        _log.info("refused bytes dropped", bundles=len(due), files=gone)
