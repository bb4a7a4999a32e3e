"""Files that appear whole or not at all."""

import os
from pathlib import Path


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
