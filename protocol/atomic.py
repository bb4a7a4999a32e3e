"""Files and folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import Code, Refused


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all, and make its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def beside(path: Path) -> Path:
    """Where a file is written before it takes its place; a kill may leave it there."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Write a folder beside its place, and put it there once it is whole.

    Args:
        folder: Must not exist yet, or be empty.

    Yields:
        Where to write; thrown away if anything goes wrong.

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
