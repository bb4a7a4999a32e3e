"""How far a long verb has come: one type of event; `client.cli.progress` shows it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a phase stands."""

    phase: str
    """`expert`, `gates` or `upload`."""
    step: int
    """Steps done; for an upload, bytes kept by the coordinator."""
    of: int
    loss: float | None = None
    """Training loss, averaged over the last few steps."""


Report = Callable[[Progress], None]
