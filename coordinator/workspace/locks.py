"""Locks that keep two processes of a workspace apart."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from filelock import FileLock, Timeout

from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.files.locks import held

_LOOK_S = 0.5
"""For less than that somebody holds a lock who only looks whether it is free, in seconds."""


@contextmanager
def exclusive(workspace: CoordinatorWorkspace, *processes: str) -> Iterator[None]:
    """Be the only process of some kinds in a workspace (`WORKSPACE_BUSY`)."""
    with ExitStack() as stack:
        for process in processes:
            busy = f"Another `greylag-coordinator {process}` works in {workspace.folder.resolve()}."
            stack.enter_context(held(workspace.lock(process), busy, "Stop it first.", _LOOK_S))
        yield


def is_at_work(workspace: CoordinatorWorkspace, process: str) -> bool:
    """Tell whether a process of a kind works in a workspace, on this machine; it keeps nobody out."""
    try:
        with FileLock(workspace.lock(process), blocking=False):
            return False
    except (Timeout, OSError):
        return True
