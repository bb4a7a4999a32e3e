"""What was measured of experts, one small file each: a restart, or a pool that grows, measures nobody twice."""

import json
from dataclasses import asdict
from pathlib import Path

from coordinator.policy.review_rule import Figures
from protocol.files.atomic import write_whole

BASE = "base"


class KeptFigures:
    """Figures by bundle, kept for as long as what experts are tried on and in stays the same.

    Args:
        folder: Where they go; may be deleted at any time.
        trial: Name of what experts are tried on, and in.
    """

    def __init__(self, folder: Path, trial: str) -> None:
        self._folder = folder / trial
        self._known: dict[str, Figures] = {}

    def find(self, digest: str) -> Figures | None:
        """Find what was measured of a bundle, or of the `BASE`; what cannot be read was not."""
        if digest not in self._known:
            try:
                found = Figures(**json.loads((self._folder / digest).read_bytes()))
            except (OSError, ValueError, TypeError):
                return None
            self._known[digest] = found
        return self._known[digest]

    def keep(self, digest: str, figures: Figures) -> None:
        """Keep what was measured."""
        write_whole(self._folder / digest, json.dumps(asdict(figures)).encode())
        self._known[digest] = figures

    def drop(self, digest: str) -> None:
        """Forget a bundle that is out for good."""
        self._known.pop(digest, None)
        (self._folder / digest).unlink(missing_ok=True)
