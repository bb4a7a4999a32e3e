"""From the model's scores to one token for each request, each drawn in its own way and by its own dice."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from router.serving.engine import Sampling

Penalty = Callable[[Tensor, Tensor], Tensor]
"""What a checkpoint wants done to scores [1, o], given the tokens before them [1, s]: penalties, forced tokens."""
_WORD = 1 << 64


class Drawn(NamedTuple):
    """One token of one request."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Dice:
    """How one request draws: what was asked for, and chance of its own.

    A token takes one number of it, whatever is drawn for others, so an answer can be had again by its seed.

    Args:
        sampling: What was asked for.
        penalty: What the checkpoint wants done to scores; None where nothing.
    """

    def __init__(self, sampling: Sampling, penalty: Penalty | None = None) -> None:
        self.sampling, self.penalty = sampling, penalty
        self._chance = np.random.default_rng(None if sampling.seed is None else sampling.seed % _WORD)

    def throw(self) -> float:
        """Return a number from 0 up to 1."""
        return float(self._chance.random())


class Due(NamedTuple):
    """A request that is to be given a token."""

    dice: Dice
    before: tuple[Sequence[int], Sequence[int]]
    """Tokens that a penalty looks at: those that the answer continues, and those written."""


def draw(scores: Tensor, due: Sequence[Due]) -> list[Drawn]:
    """Draw a token for each row of scores [b, o], o the vocabulary."""
    scores = scores.float()
    wanted = _penalised(scores, due)
    tokens = wanted.argmax(-1)
    rows = [row for row, each in enumerate(due) if each.dice.sampling.temperature > 0]
    if rows:
        tokens[rows] = _sampled(wanted[rows], [due[row].dice for row in rows])
    told = _logprobs(scores, tokens, due)
    return [Drawn(token, *told.get(row, (None, ()))) for row, token in enumerate(tokens.tolist())]


def _penalised(scores: Tensor, due: Sequence[Due]) -> Tensor:
    if all(each.dice.penalty is None for each in due):
        return scores
    wanted = scores.clone()
    for row in range(len(due)):
        penalty, (read, written) = due[row].dice.penalty, due[row].before
        if penalty is not None:
            before = torch.tensor([[*read, *written]], device=scores.device)
            wanted[row : row + 1] = penalty(before, wanted[row : row + 1])
    return wanted


def _sampled(scores: Tensor, dice: Sequence[Dice]) -> Tensor:
    """Draw for each row of scores [b, o] among the likeliest tokens that together reach its top-p; gives [b]."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=scores.device).unsqueeze(1)

    temperatures = column([each.sampling.temperature for each in dice])
    # Equals in the order of the vocabulary, so that a number means the same token each time.
    shares, order = torch.softmax(scores / temperatures, -1).sort(dim=-1, descending=True, stable=True)
    # A token is in as long as those before it do not reach top-p, and the first has none before it.
    kept = shares.cumsum(-1) - shares < column([each.sampling.top_p for each in dice])
    reached = (shares * kept).cumsum(-1)
    at = torch.searchsorted(reached, column([each.throw() for each in dice]) * reached[:, -1:], right=True)
    return order.gather(1, at.minimum(kept.sum(-1, keepdim=True) - 1)).squeeze(1)


def _logprobs(
    scores: Tensor, tokens: Tensor, due: Sequence[Due]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """Compute log-probabilities of the tokens written and of the likeliest, by row, for those who asked."""
    wishes = [(row, most) for row, each in enumerate(due) if (most := each.dice.sampling.top_logprobs) is not None]
    if not wishes:
        return {}
    rows = [row for row, _ in wishes]
    logprobs = torch.log_softmax(scores[rows], -1)
    own = logprobs.gather(1, tokens[rows].unsqueeze(1)).squeeze(1).tolist()
    best, which = logprobs.topk(min(max(most for _, most in wishes), logprobs.shape[1]), dim=-1)
    tops = [list(zip(*pair, strict=True)) for pair in zip(which.tolist(), best.tolist(), strict=True)]
    return {row: (mine, tuple(top[:most])) for (row, most), mine, top in zip(wishes, own, tops, strict=True)}
