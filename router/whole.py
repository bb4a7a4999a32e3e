"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import Code, Refused


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Write a folder beside its place, and put it there once it is whole.

    Args:
        folder: Must not exist yet, or be empty.

    Yields:
        Where to write; thrown away if anything goes wrong.

    Raises:
        Refused: `WORKSPACE_EXISTS` if there is something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(Code.WORKSPACE_EXISTS, f"{folder} is there already and not empty.", "Give a new folder.")
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
