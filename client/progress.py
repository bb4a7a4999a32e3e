"""How far a long verb has come: one type of event; `client.cli.progress` shows it."""

from collections.abc import Callable
from dataclasses import dataclass

GIVE_UP_AFTER_S = 600.0
"""Seconds without any progress after which a verb gives up, unless a flag says otherwise."""


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
