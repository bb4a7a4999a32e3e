"""Files and folders that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import Code, Refused

_SECRET_BYTES = 32


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all, and make its folder where it is missing; of several writers the last wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content, 0o666)


def _replace(path: Path, content: bytes, mode: int) -> None:
    temporary = _beside(path)
    try:
        _write(temporary, content, mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Have a file, or what a folder lists, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone may read, whole or not at all; `FileExistsError` if there is one."""
    temporary = _beside(path)
    try:
        _write(temporary, content, 0o600)
        os.link(temporary, path)  # unlike a rename, it never replaces
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def replace_secret(path: Path, content: bytes) -> None:
    """Replace a file that its owner alone may read, whole or not at all."""
    _replace(path, content, 0o600)
    sync(path.parent)


def renew_secret(path: Path) -> None:
    """Write a random secret in the place of the last one: one that a kill left half written would keep nobody out."""
    path.unlink(missing_ok=True)
    write_secret(path, secrets.token_bytes(_SECRET_BYTES))


def sweep(path: Path) -> None:
    """Remove what kills left beside a file while it was written."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Write a folder beside its place, and put it there once it is whole; what goes wrong leaves nothing.

    Raises:
        Refused: `WORKSPACE_EXISTS` if there is something in the folder, or if it is the current one.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(Code.WORKSPACE_EXISTS, f"{folder} is there already and not empty.", "Give a new folder.")
    folder = folder.resolve()
    if folder == Path.cwd():
        raise Refused(Code.WORKSPACE_EXISTS, f"{folder} is where this command runs.", "Give a new folder.")
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
