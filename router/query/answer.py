"""What a routed model says, and which experts said it. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ModuleRoute:
    """What one module chose for the tokens of one request."""

    module: str
    reads_input: bool
    """Whether the module sees the input's tokens; else the output's. A decoder-only model's modules see both."""
    experts: NDArray[np.int64]
    """[s, k] positions in the pool."""
    weights: NDArray[np.float32]
    """[s, k]; below zero what the method takes off."""
    full: NDArray[np.float32] | None = None
    """[s, n], the probabilities of all experts of the pool; only if they were asked for."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said to one input, and why."""

    text: str
    release: int = 0
    """The release that answered; 0 for a model that was put together by hand."""
    method: str = ""
    """The routing method."""
    input_tokens: tuple[str, ...] = ()
    output_tokens: tuple[str, ...] = ()
    routes: tuple[ModuleRoute, ...] = ()
    """Only if an explanation was asked for."""


@dataclass(frozen=True, eq=False)
class Answered:
    """What a routed model answered to a batch of inputs."""

    experts: tuple[str, ...]
    """Names, in pool order, of every expert that the batch's releases hold; routes count into it."""
    answers: tuple[Answer, ...]


def merge_answers(batches: Sequence[Answered]) -> Answered:
    """Put batches into one, by the names of their experts: between two of them a router may go over to a release."""
    names = tuple(dict.fromkeys(name for batch in batches for name in batch.experts))
    positions = {name: at for at, name in enumerate(names)}
    answers = []
    for batch in batches:
        moved = np.array([positions[name] for name in batch.experts], dtype=np.int64)
        answers += [
            replace(answer, routes=tuple(_moved(route, moved, len(names)) for route in answer.routes))
            for answer in batch.answers
        ]
    return Answered(names, tuple(answers))


def _moved(route: ModuleRoute, positions: NDArray[np.int64], count: int) -> ModuleRoute:
    full = None
    if route.full is not None:
        full = np.zeros((len(route.full), count), dtype=np.float32)
        full[:, positions] = route.full
    return replace(route, experts=positions[route.experts], full=full)
