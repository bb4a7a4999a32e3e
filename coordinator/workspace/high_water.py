"""How far a pool had come: the newest release and the newest receipt that left a workspace, and its log, kept in files.

A database that does not know of them is an older one that somebody restored: going on from it would give numbers twice.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import structlog
from filelock import FileLock

from coordinator.registry.registry import Registry
from coordinator.registry.tables import Event
from coordinator.workspace.checkpoints import Checkpoints
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.documents import Pool, read_receipt
from protocol.errors import Code, GreylagError, Refused
from protocol.files.atomic import write_whole
from protocol.release import Release, read_release

Document = TypeVar("Document")
_WAIT_S = 30
_log = structlog.get_logger(__name__)


class HighWater:
    """The marks of a workspace, and what its registry has to say to them."""

    def __init__(
        self, workspace: CoordinatorWorkspace, registry: Registry, pool: Pool, checkpoints: Checkpoints
    ) -> None:
        self._published, self._acknowledged = workspace.published, workspace.acknowledged
        self._lock = workspace.lock("marks")
        self._registry, self._pool, self._checkpoints = registry, pool, checkpoints

    def rise(self, event: Event) -> None:
        """Sign for an event, and move the marks if it let out a release or a receipt; what goes wrong is logged.

        What happened has happened: the next event, or the next start, tries again.
        """
        try:
            if event.kind == "release" or (event.kind, event.step) == ("bundle", "received"):
                self.level()
            else:
                self._checkpoints.newest()
        except (OSError, GreylagError) as error:
            _log.warning("not remembered", error=str(error))

    def level(self) -> None:
        """Set the marks where the registry is, one process and one thread after the other, lest they go back."""
        self._checkpoints.newest()
        with FileLock(self._lock, timeout=_WAIT_S):
            release, row = self._registry.releases.find(), self._registry.bundles.newest()
            marks = {self._published: release.envelope if release else None}
            marks[self._acknowledged] = row.receipt if row else None
            for path, content in marks.items():
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    write_whole(path, content)

    def lost_release(self) -> Release | None:
        """The newest release that left the workspace, if the registry does not know it."""
        release = _read(self._published, read_release, self._pool)
        row = self._registry.releases.find(release.spec.number) if release else None
        return None if row and release and row.digest == release.digest else release

    def lost_receipts(self) -> int:
        """How many of the last receipts the registry does not know."""
        receipt, row = _read(self._acknowledged, read_receipt, self._pool), self._registry.bundles.newest()
        return max(0, receipt.sequence - (row.sequence if row else 0)) if receipt else 0

    def check(self) -> None:
        """Refuse to go on from an older registry.

        Raises:
            Refused: `REGISTRY_OLDER`, or `LOG_ROLLBACK` where neither a release nor a receipt is lost, or `LOG_FORK`.
        """
        if release := self.lost_release():
            what = f"release {release.spec.number}, which was published from here"
        elif receipts := self.lost_receipts():
            what = f"the last bundles: {receipts} more receipts were given than it holds"
        else:
            self._checkpoints.check()
            return
        raise Refused(
            Code.REGISTRY_OLDER,
            f"The registry does not know {what}; an older database was restored.",
            "Restore a newer copy or, without one, go on from here with: greylag-coordinator fsck --adopt",
        )

    def adopt(self, *, now: datetime) -> list[str]:
        """Make the log and the newest release that left the workspace the registry's, so that both go on.

        Returns:
            Digests of the bundles that were yanked: by the log, or as that release has neither them nor successors.

        Raises:
            Refused: `STATE_CHANGE` if the registry holds another release of that number or a later one, or `LOG_FORK`.
        """
        yanked, release = self._checkpoints.adopt(now=now), self.lost_release()
        yanked += self._registry.releases.adopt(release, now=now) if release else []
        self.level()
        return yanked


def _read(path: Path, read: Callable[[bytes, Pool], Document], pool: Pool) -> Document | None:
    try:
        return read(path.read_bytes(), pool) if path.exists() else None
    except Refused as error:
        raise Refused(error.code, f"{path} is damaged: {error.message}", "Remove it.") from error
