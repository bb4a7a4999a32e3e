"""Locks that keep two processes apart."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.errors import Code, Refused

_LOOK_S = 0.5
"""For less than that somebody holds a lock who only looks whether it is free, in seconds."""


@contextmanager
def exclusive(workspace: CoordinatorWorkspace, process: str) -> Iterator[None]:
    """Be the only process of a kind in a workspace.

    Raises:
        Refused: `WORKSPACE_BUSY`, or `SETTINGS_INVALID` where the workspace cannot be written.
    """
    lock = FileLock(workspace.lock(process))
    try:
        lock.acquire(timeout=_LOOK_S)
    except Timeout as error:
        raise Refused(
            Code.WORKSPACE_BUSY,
            f"Another `greylag-coordinator {process}` works in {workspace.folder.resolve()}.",
            "Stop it first.",
        ) from error
    except OSError as error:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{workspace.folder.resolve()} cannot be written to: {error.strerror}.",
            "Check the folder's owner and permissions.",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def all_stopped(workspace: CoordinatorWorkspace) -> Iterator[None]:
    """Keep every process out of a workspace.

    Raises:
        Refused: As `exclusive`.
    """
    with exclusive(workspace, "serve"), exclusive(workspace, "worker"), exclusive(workspace, "fleet"):
        yield


def is_at_work(workspace: CoordinatorWorkspace, process: str) -> bool:
    """Tell whether a process of a kind works in a workspace, on this machine; it keeps nobody out."""
    lock = FileLock(workspace.lock(process))
    try:
        with lock.acquire(blocking=False):
            return False
    except (Timeout, OSError):
        return True
