"""Text that lies in gzip's format, as manual pages and dictionaries do."""

import gzip
from pathlib import Path

from tests.real.packages import file_of


def text_of(path: Path) -> str:
    """Read a file; bytes that are no UTF-8 are marked."""
    return gzip.decompress(path.read_bytes()).decode("utf-8", "replace")


def dictionary(package: str) -> str:
    """Read the whole text of a dictionary of the dictd format."""
    return text_of(file_of(package, "*.dict.dz"))
