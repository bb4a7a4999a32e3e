"""Many requests in one row of tokens: a decoder answers whoever is there, and nobody waits for the longest answer."""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from router.base.loading import Base
from router.layer.routed_linear import SegmentPlan, routing
from router.serving.batches.draw import Due, draw
from router.serving.batches.paged import PagedBatch, Segment
from router.serving.batches.seat import Seat


class PackedBatch:
    """Answers requests of any choice in one batch.

    Args:
        base: A decoder.
        pages: Pages of keys and values.
        seats: Requests at a time.

    Raises:
        Unavailable: `MEMORY_FULL`.
    """

    starts = 0
    """Tokens that stand before an answer beside the prompt's."""

    def __init__(self, base: Base, *, pages: int, seats: int) -> None:
        self._seats: dict[str, Seat] = {}
        self._names: dict[Seat, str] = {}
        self._numbers = count()
        self._batch = PagedBatch(base.model, self._run, pages=pages, seats=seats)

    def add(self, seat: Seat) -> None:
        """Let a planned request in."""
        name = self._names[seat] = str(next(self._numbers))
        self._seats[name] = seat
        self._batch.add(name, seat.asked.prompt.tokens)

    def remove(self, seat: Seat) -> None:
        """Take a request out, whether it is over or not."""
        name = self._names.pop(seat)
        del self._seats[name]
        self._batch.remove(name)

    def clear(self) -> None:
        """Take everybody out, after a step that failed."""
        self._seats.clear()
        self._names.clear()
        self._batch.clear()

    def step(self) -> None:
        """Give everybody whose prompt is read a token, and read on in the others'."""
        with torch.inference_mode():
            self._batch.step()

    def _run(self, segments: Sequence[Segment], scores: Callable[[], Tensor]) -> list[int]:
        parts = [(self._seats[each.name].plan, each.tokens) for each in segments]
        alone = parts[0][0] if len({plan for plan, _ in parts}) == 1 else None
        # Inside, in the thread that runs the model: a plan that is set elsewhere would not be seen.
        with routing(alone or SegmentPlan(parts)):
            found = scores()
        seats = [self._seats[each.name] for each in segments if each.due]
        drawn = draw(found, [Due(seat.dice, (seat.asked.prompt.tokens, seat.written)) for seat in seats])
        for seat, each in zip(seats, drawn, strict=True):
            seat.take(each)
        return [each.token for each in drawn]
