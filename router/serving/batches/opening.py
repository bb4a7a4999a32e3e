"""Which engine a base asks for."""

from functools import partial

from router.model.routed_model import RoutedModel
from router.serving.batches.loop import BatchEngine
from router.serving.batches.packed import PackedBatch
from router.serving.batches.padded import PaddedBatch
from router.serving.batches.paged import can_pack
from router.serving.batches.room import room
from router.serving.engine import Engine

DEFAULT_SEATS = 16
"""Requests that are answered at a time."""
DEFAULT_GATHER_S = 0.005
"""How long the first request of a padded batch waits for others, in seconds."""


def open_engine(
    model: RoutedModel,
    *,
    waiting: int,
    memory_share: float,
    seats: int = DEFAULT_SEATS,
    gather_s: float = DEFAULT_GATHER_S,
) -> Engine:
    """Make the engine that a model's base asks for; it is still to be started.

    Args:
        model: The routed model.
        waiting: Requests that may wait, beside those that are answered.
        memory_share: What requests may take for keys and values of the memory that is free now: above 0, up to 1.
        seats: Requests that are answered at a time.
        gather_s: How long the first request waits for others where a batch cannot be joined once it runs, in seconds.

    Raises:
        Unavailable: `MEMORY_FULL` if the share holds no request.
    """
    pages, base = room(model.base, memory_share, seats), model.base
    if can_pack(base):
        pack = partial(PackedBatch, base, pages=pages, seats=seats)
        return BatchEngine(model, pack, room=pages, seats=seats, waiting=waiting)
    pad = partial(PaddedBatch, base)
    return BatchEngine(model, pad, room=pages, seats=seats, waiting=waiting, gather_s=gather_s)
