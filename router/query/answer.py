"""What a routed model says, and which experts said it. Needs no torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
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
    digests: tuple[str, ...] = ()
    """Their bundles; empty where only names are known."""


def merge_answers(batches: Sequence[Answered]) -> Answered:
    """Put batches into one, by their experts: between two of them a router may go over to a release.

    Experts are told apart by their bundles, or by their names where a batch knows only these.
    """
    known = all(len(batch.digests) == len(batch.experts) for batch in batches)
    keys = [batch.digests if known else batch.experts for batch in batches]
    found: dict[str, str] = {}
    for mine, batch in zip(keys, batches, strict=True):
        found |= zip(mine, batch.experts, strict=True)
    positions = {key: at for at, key in enumerate(found)}
    answers = []
    for mine, batch in zip(keys, batches, strict=True):
        moved = np.array([positions[key] for key in mine], dtype=np.int64)
        answers += [
            replace(answer, routes=tuple(_moved(route, moved, len(found)) for route in answer.routes))
            for answer in batch.answers
        ]
    if not known:
        return Answered(tuple(found.values()), tuple(answers))
    return Answered(told_apart(found), tuple(answers), tuple(found))


def told_apart(names: Mapping[str, str]) -> tuple[str, ...]:
    """Name experts, given by digest: those that share a name with the beginning of their digests."""
    bare = {digest: name.removesuffix(_suffix(digest)) for digest, name in names.items()}
    often = Counter(bare.values())
    return tuple(name if often[name] == 1 else name + _suffix(digest) for digest, name in bare.items())


def _suffix(digest: str) -> str:
    return f"@{digest[:16]}"


def _moved(route: ModuleRoute, positions: NDArray[np.int64], count: int) -> ModuleRoute:
    full = None
    if route.full is not None:
        full = np.zeros((len(route.full), count), dtype=np.float32)
        full[:, positions] = route.full
    return replace(route, experts=positions[route.experts], full=full)
