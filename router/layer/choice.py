"""Which experts a token gets, and with which weights."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """Which experts each token is given."""

    experts: Tensor
    """[t, k] rows among the experts of a module, highest score first."""
    weights: Tensor
    """[t, k] float32; each row sums to 1 where a softmax made it."""
    hidden: Tensor | None = None
    """[t, k, r] float32, w s A u, where a GPU computed it by the way."""


class CommonChoice(NamedTuple):
    """The experts that all tokens are given alike; also those of a token that comes alone."""

    experts: list[int]
    """k rows among the experts of a module, highest score first."""
    weights: list[float]
    """k; they sum to 1 unless the method wants it otherwise."""


def concatenate_choices(choices: Iterable[Choice | CommonChoice | None]) -> Choice | None:
    """Put together what was chosen for one piece of the tokens after the other, each [t, k]; None for nobody."""
    pieces = [choice for choice in choices if isinstance(choice, Choice)]
    if not pieces:
        return None
    return Choice(torch.cat([piece.experts for piece in pieces]), torch.cat([piece.weights for piece in pieces]))
