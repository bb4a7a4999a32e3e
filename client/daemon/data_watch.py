"""Notices when enough of the private file has changed to train again; what it remembers stays here."""

import hashlib
from pathlib import Path

from protocol.files.atomic import write_whole

_DIGEST_BYTES = 8


class DataWatch:
    """Compares the private file with the one that was trained on last.

    Args:
        memory: File that remembers the lines, as short digests.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._stamp: tuple[int, int] | None = None

    def changed(self, data: Path) -> float:
        """Tell which share of the lines is new or gone; 0 before the first training, and for a file that is away."""
        try:
            stat = data.stat()
            before = _split(self._memory.read_bytes())
        except OSError:
            return 0.0
        stamp = stat.st_mtime_ns, stat.st_size
        if stamp == self._stamp:
            return 0.0  # looked at already
        self._stamp = stamp
        return len(_lines(data) ^ before) / max(1, len(before))

    def look_again(self) -> None:
        """Forget that the file was looked at: what it asks for was put off."""
        self._stamp = None

    def remember(self, data: Path) -> None:
        """Take the file as it is for the one that was trained on."""
        write_whole(self._memory, b"".join(sorted(_lines(data))))


def _lines(path: Path) -> set[bytes]:
    with path.open("rb") as file:
        return {hashlib.blake2b(line.strip(), digest_size=_DIGEST_BYTES).digest() for line in file if line.strip()}


def _split(raw: bytes) -> set[bytes]:
    return {raw[at : at + _DIGEST_BYTES] for at in range(0, len(raw), _DIGEST_BYTES)}
