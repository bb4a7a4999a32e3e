"""Notices when enough of the private file has changed to train again; what it remembers stays here."""

import hashlib
from pathlib import Path

from protocol.files.atomic import write_whole

_DIGEST_BYTES = 8


class DataWatch:
    """Compares the private file with the one that was trained on last, whose lines it keeps as short digests."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._stamp: tuple[int, int] | None = None
        self._lines = b""

    @property
    def digest(self) -> str:
        """Names the lines that the last look found."""
        return hashlib.sha256(self._lines).hexdigest()

    def look(self, data: Path) -> float:
        """Look at the lines, and tell which share of them is new or gone since the last training.

        Returns:
            0 before the first training, and for a file that is away.
        """
        try:
            stat = data.stat()
            if (stamp := (stat.st_mtime_ns, stat.st_size)) != self._stamp:
                self._lines, self._stamp = _digests(data), stamp
            before = _split(self._memory.read_bytes())
        except OSError:
            return 0.0
        return len(_split(self._lines) ^ before) / max(1, len(before))

    def remember(self) -> None:
        """Take the lines that the last look found, which was before the training, for those that were trained on."""
        write_whole(self._memory, self._lines)


def _digests(path: Path) -> bytes:
    with path.open("rb") as file:
        lines = {hashlib.blake2b(line.strip(), digest_size=_DIGEST_BYTES).digest() for line in file if line.strip()}
    return b"".join(sorted(lines))


def _split(raw: bytes) -> set[bytes]:
    return {raw[at : at + _DIGEST_BYTES] for at in range(0, len(raw), _DIGEST_BYTES)}
