"""Places where a test may kill the process, to show that nothing is lost there."""

import os
import signal

POINTS = (
    "spool-synced", "bytes-checked", "blob-linked", "blob-renamed", "blobs-stored", "before-commit", "after-commit",
    "spool-dropped",
)  # fmt: skip
"""In the order in which an acceptance passes them."""


def fault_point(name: str) -> None:
    """Die as in a power cut if GREYLAG_FAULT_POINT names this place."""
    if os.environ.get("GREYLAG_FAULT_POINT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
