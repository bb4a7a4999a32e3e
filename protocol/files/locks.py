"""Locks that keep two processes apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from protocol.errors import Code, Refused


@contextmanager
def held(lock: Path, message: str, hint: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock for the length of a block.

    Args:
        lock: The file; its folder must be there.
        message: What to say if another process holds it (`WORKSPACE_BUSY`).
        hint: What to do then.
        wait_s: How long to wait for the other, in seconds.
    """
    file = FileLock(lock)
    try:
        file.acquire(timeout=wait_s)
    except Timeout as error:
        raise Refused(Code.WORKSPACE_BUSY, message, hint) from error
    try:
        yield
    finally:
        file.release()
