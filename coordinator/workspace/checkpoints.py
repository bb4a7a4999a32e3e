"""Signs the log's newest checkpoint, and keeps it and the log's entries in files beside the database.

A database that was restored from an older copy is found out by them, and the log goes on from where it was: what is
signed for is in the file of entries before it is signed.
"""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock

from coordinator.faults import fault_point
from coordinator.registry.log import PAGE
from coordinator.registry.lost_entries import take_in
from coordinator.registry.registry import Registry
from coordinator.workspace.keyring import Keyring
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.documents import Duty, Pool
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.log.checkpoint import Checkpoint, read_checkpoint, sign_checkpoint
from protocol.log.leaf import MAX_LEAF_BYTES, LogLeaf, read_leaf
from protocol.log.merkle import EMPTY_ROOT

_WAIT_S = 30


class Checkpoints:
    """The log's head, and how far it had come."""

    def __init__(self, workspace: CoordinatorWorkspace, registry: Registry, pool: Pool, keyring: Keyring) -> None:
        self._checkpoint, self._entries = workspace.checkpoint, workspace.entries
        self._lock = workspace.lock("log")
        self._registry, self._pool, self._keyring = registry, pool, keyring

    def newest(self) -> Checkpoint:
        """Sign the log as it is, unless that was done.

        Raises:
            Refused: `LOG_ROLLBACK` or `LOG_FORK`, as `check`.
        """
        signed = self.check()
        if signed is not None and signed.current and signed.size == self._registry.log.size():
            return signed
        with FileLock(self._lock, timeout=_WAIT_S):
            signed, size = self.check(), self._registry.log.size()
            if signed is None or not signed.current or signed.size < size:
                identity = self._keyring.get(self._pool.key(Duty.LOG), "has the duty log")
                self._keep_entries(size)
                fault_point("entries-kept")
                signed = sign_checkpoint(self._pool, size, self._registry.log.root(size), identity)
                write_whole(self._checkpoint, signed.note.encode())
            return signed

    def check(self) -> Checkpoint | None:
        """Refuse to go on from a registry that lacks what was signed for, and return the last checkpoint.

        Raises:
            Refused: `LOG_ROLLBACK` or `LOG_FORK`.
        """
        signed = self._signed()
        if lost := self._lost(signed):
            what, code = f"lacks the last {lost} entries of its log", Code.LOG_ROLLBACK
        elif signed is not None and self._registry.log.root(signed.size) != signed.root:
            what, code = f"has another log than was signed for at {signed.size} entries", Code.LOG_FORK
        else:
            return signed
        raise Refused(
            code,
            f"The registry {what}; an older database was restored.",
            "Restore a newer copy or, without one, go on from here with: greylag-coordinator fsck --adopt",
        )

    def lost(self) -> int:
        """How many entries were signed for or kept here that the registry lacks."""
        return self._lost(self._signed())

    def adopt(self, *, now: datetime) -> list[str]:
        """Write lost entries into the registry again, and return digests of the bundles that are yanked by it.

        Raises:
            Refused: As `coordinator.registry.lost_entries.take_in`.
        """
        try:
            self.check()
        except Refused as error:
            if error.code not in (Code.LOG_ROLLBACK, Code.LOG_FORK):
                raise
        else:
            return []
        kept, signed = list(self._kept()), self._signed()
        known = (signed.size, signed.root) if signed else (0, EMPTY_ROOT)
        return take_in(self._registry, kept, self._pool.digest, signed=known, now=now)

    def _lost(self, signed: Checkpoint | None) -> int:
        known = max(signed.size if signed else 0, self._kept_size()[0])
        return max(0, known - self._registry.log.size())

    def _signed(self) -> Checkpoint | None:
        try:
            return read_checkpoint(self._checkpoint.read_bytes(), self._pool)
        except FileNotFoundError:
            return None
        except Refused as error:
            if error.code is Code.BAD_SIGNATURE:
                what = f"{self._checkpoint} is signed by a key that no root here names; older roles were restored."
                hint = "Publish the roots that are missing: any reader has them, in the folder roots."
                raise Refused(error.code, what, hint) from error
            raise _damaged(self._checkpoint, error) from error

    def _kept(self) -> Iterator[LogLeaf]:
        if self._entries.exists():
            with self._entries.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield read_leaf(line[:-1])

    def _kept_size(self) -> tuple[int, int]:
        """Return how many entries are kept whole, and in how many bytes."""
        try:
            with self._entries.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                begin = file.seek(max(0, end - 2 * MAX_LEAF_BYTES))
                whole, newline, cut = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return 0, 0
        if not newline and begin:
            raise _damaged(self._entries, Refused(Code.SPEC_INVALID, "its last line is too long"))
        try:
            number = read_leaf(whole.rpartition(b"\n")[2]).number if newline else 0
        except Refused as error:
            raise _damaged(self._entries, error) from error
        return number, end - len(cut)

    def _keep_entries(self, size: int) -> None:
        """Have the file hold all entries up to a size; a line that a kill cut short is written anew."""
        count, length = self._kept_size()
        with self._entries.open("ab") as file:
            file.truncate(length)
            while count < size:
                leaves = self._registry.log.leaves(count, min(PAGE, size - count))
                file.write(b"".join(leaf + b"\n" for leaf in leaves))
                count += len(leaves)
            file.flush()
            os.fsync(file.fileno())


def _damaged(path: Path, error: Refused) -> Refused:
    return Refused(error.code, f"{path} is damaged: {error.message}", "Restore it from a copy, or remove it.")
