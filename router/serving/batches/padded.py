"""Batches of padded rows, for bases that cannot be asked in one row of tokens: a new one forms while others run."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from router.base.batching import prompt_batch
from router.base.loading import Base
from router.layer.routed_linear import MixedPlan, RoutingPlan, routing
from router.serving.batches.draw import Due, draw
from router.serving.batches.seat import Seat

COHORTS = 4
"""Batches that run side by side, each a step in turn; whoever comes when so many run waits for the next."""


class PaddedBatch:
    """Answers requests of any choice in cohorts: those that came at a time read and write together.

    Args:
        base: A base of either architecture.
    """

    def __init__(self, base: Base) -> None:
        self._base, self._forming, self._cohorts = base, list[Seat](), list[_Cohort]()
        self.starts = 1 if base.architecture == "encoder-decoder" else 0

    def add(self, seat: Seat) -> None:
        """Let a planned request into the cohort that forms."""
        self._forming.append(seat)

    def remove(self, seat: Seat) -> None:
        """Take a request out, whether it is over or not."""
        if seat in self._forming:
            self._forming.remove(seat)
        for cohort in self._cohorts:
            cohort.leave(seat)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.seats]

    def clear(self) -> None:
        """Take everybody out, after a step that failed."""
        self._forming.clear()
        self._cohorts.clear()

    def step(self) -> None:
        """Give everybody in a cohort a token, and begin the cohort that formed where there is a place."""
        if self._forming and len(self._cohorts) < COHORTS:
            kind = _Encoded if self._base.architecture == "encoder-decoder" else _Continued
            self._cohorts.append(kind(self._base, self._forming))
            self._forming = []
        with torch.inference_mode():
            for cohort in self._cohorts:
                cohort.step()


class _Cohort(ABC):
    """Requests that began together; those who are over leave, and the rest go on without them.

    Attributes:
        seats: Who is still answered, a row each; of one plan they stand together.
    """

    def __init__(self, base: Base, seats: Sequence[Seat]) -> None:
        places: dict[RoutingPlan, int] = {}
        for seat in seats:
            places.setdefault(seat.plan, len(places))
        self.seats = sorted(seats, key=lambda seat: places[seat.plan])
        self._model: Any = base.model
        self._read = prompt_batch(base, [seat.asked.prompt for seat in self.seats])
        ids, masks = (self._read[name].tolist() for name in ("input_ids", "attention_mask"))
        for seat, *read in zip(self.seats, ids, masks, strict=True):
            seat.read = (read[0], read[1])
        self._mask = self._read["attention_mask"]
        self._kept: Any = None
        """Keys and values."""
        self._last: Tensor | None = None
        """Tokens [b, 1] that were written last."""
        self._plan = self._joined()

    def leave(self, seat: Seat) -> None:
        """Go on without a request."""
        if seat not in self.seats:
            return
        rows = [row for row, each in enumerate(self.seats) if each is not seat]
        self.seats = [self.seats[row] for row in rows]
        if rows:
            self._plan = self._joined()
            self._keep(torch.tensor(rows, device=self._mask.device))

    def step(self) -> None:
        """Give each request a token."""
        with routing(self._plan):
            scores = self._scores()
        drawn = draw(scores[:, -1], [Due(seat.dice, (self._before(seat), seat.written)) for seat in self.seats])
        self._last = torch.tensor([[each.token] for each in drawn], device=self._mask.device)
        for seat, each in zip(self.seats, drawn, strict=True):
            seat.take(each)

    def _joined(self) -> RoutingPlan | MixedPlan:
        parts = [(plan, len(list(seats))) for plan, seats in groupby(self.seats, key=lambda seat: seat.plan)]
        return parts[0][0] if len(parts) == 1 else MixedPlan(parts)

    def _keep(self, rows: Tensor) -> None:
        """Keep some rows of what is carried from step to step."""
        self._mask = self._mask[rows]
        if self._last is not None:
            self._last = self._last[rows]
        if self._kept is not None:
            self._kept.batch_select_indices(rows)

    @abstractmethod
    def _before(self, seat: Seat) -> Sequence[int]:
        """Return the tokens that an answer continues."""

    @abstractmethod
    def _scores(self) -> Tensor:
        """Run the model for a step; returns scores [b, s, o], of which the last count."""


class _Encoded(_Cohort):
    """An encoder has read; its decoder writes."""

    def __init__(self, base: Base, seats: Sequence[Seat]) -> None:
        super().__init__(base, seats)
        told = self._model.generation_config
        start = told.decoder_start_token_id if told.decoder_start_token_id is not None else told.bos_token_id
        self._start = int(start[0] if isinstance(start, list) else start)
        self._encoded: Tensor | None = None

    def _before(self, seat: Seat) -> Sequence[int]:  # noqa: ARG002 - all begin alike
        return (self._start,)

    def _scores(self) -> Tensor:
        if self._encoded is None:
            self._encoded = self._model.get_encoder()(**self._read).last_hidden_state
            self._last = torch.full((len(self.seats), 1), self._start, device=self._mask.device)
        out = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._encoded),
            attention_mask=self._mask, decoder_input_ids=self._last, past_key_values=self._kept, use_cache=True,
        )  # fmt: skip
        self._kept = out.past_key_values
        scores: Tensor = out.logits
        return scores

    def _keep(self, rows: Tensor) -> None:
        super()._keep(rows)
        if self._encoded is not None:
            self._encoded = self._encoded[rows]


class _Continued(_Cohort):
    """A decoder goes on where prompts end, with padding before them."""

    def _before(self, seat: Seat) -> Sequence[int]:
        return seat.asked.prompt.tokens

    def _scores(self) -> Tensor:
        if self._last is None:
            tokens, places = self._read["input_ids"], (self._mask.cumsum(-1) - 1).clamp(min=0)
        else:
            self._mask = torch.cat([self._mask, torch.ones_like(self._last)], 1)
            tokens, places = self._last, self._mask.sum(-1, keepdim=True) - 1
        # A base that tells tokens apart by distance alone takes no places.
        where = {"position_ids": places} if "position_ids" in inspect.signature(self._model.forward).parameters else {}
        out = self._model(
            input_ids=tokens, attention_mask=self._mask, past_key_values=self._kept, use_cache=True, **where
        )
        self._kept = out.past_key_values
        scores: Tensor = out.logits[:, -1:]
        return scores
