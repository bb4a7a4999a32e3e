"""Caps what experts take together: a bias for each, fitted on public text, that lowers whoever takes too much there.

An expert's share is the mean over tokens of the weight that it is given (`router.layer.topk`: the k best, a softmax
over them), so that all shares sum to 1. Of p parties each has a fair share of 1 / p. Three kinds of sets may not take
more than c fair shares: all that one contributor has, all that choose like one expert, and all that newcomers have. A
set S that takes more is lowered, again and again, until none does:

    bias_z -= log(share_S p / c) / 4             for z in S; of several sets, by the most that one asks for

Lowering one set only raises the shares of others, so whoever never takes too much keeps a bias of zero, and where
nobody does, nothing changes. With c >= 1 the sets cannot all take too much at once. Where tokens are so few, or so
alike, that there is no step between too much and too little, what came nearest is kept.

The same serves a mixture (`router.methods.features.mixture`): with scores log c and every expert chosen, the weights
are the shares c / sum c of a request.

Experts choose alike where their scores go up and down together: by the correlation over the same tokens, which neither
a gate's scale changes nor any direction that the tokens do not have. Whoever came first stands for those who are like
him, and is not lowered for their sake; nor can anybody join two that were apart by standing between them.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ALIKE = 0.9
"""Correlation of scores from which on two experts count as one."""
_RATES = (1 / 4, 1 / 16, 1 / 64)
"""Parts of the way that are gone at once; finer ones where the coarser miss."""
_STEP = 0.002
"""Least by which a set is lowered, in units of the softmax."""
_ROUNDS = 1000


class Sets(NamedTuple):
    """Who may not take too much together."""

    members: Tensor
    """[s, n], true where an expert is in a set; it may be in several."""
    lowered: Tensor
    """[s, n], true where it is lowered for a set's sake."""
    parties: int
    """Contributors who have an expert that is like no earlier one of another's; all newcomers are one."""


class Fitted(NamedTuple):
    """What the fit came to at one module."""

    bias: Tensor
    """[n], zero or less, in units of the softmax."""
    excess: float
    """The largest share of a set over what it may take: 1 or less, but for text on which no bias helps."""


def shares(scores: Tensor, k: int) -> Tensor:
    """Average over tokens what the k best of n experts are given: scores [t, n] to [n], which sums to 1."""
    best, experts = scores.topk(min(k, scores.shape[1]), dim=1)
    given = torch.softmax(best, dim=1).flatten()
    return scores.new_zeros(scores.shape[1]).index_add_(0, experts.flatten(), given) / len(scores)


def likeness(scores: Tensor) -> Tensor:
    """Correlate the scores of experts over tokens: [t, n] to [n, n]; 0 for an expert whose scores do not vary."""
    apart = scores - scores.mean(0)
    unit = apart / torch.linalg.vector_norm(apart, dim=0).clamp(min=torch.finfo(scores.dtype).tiny)
    return unit.T @ unit


def fit_biases(scores: Tensor, sets: Sets, k: int, most: float) -> Fitted:
    """Lower sets of experts until none takes too much.

    Each round costs one choice of k among n for each of t tokens.

    Args:
        scores: [t, n], in units of the softmax.
        sets: Who may not take too much together.
        k: Experts a token.
        most: The largest share that a set may have, in fair shares.
    """
    members, limit = sets.members.to(scores.dtype), most / sets.parties
    nearest = Fitted(scores.new_zeros(scores.shape[1]), math.inf)
    for rate in _RATES:
        bias = scores.new_zeros(scores.shape[1])
        for _ in range(_ROUNDS):
            excess = members @ shares(scores + bias, k) / limit
            worst = excess.max().item()
            if worst < nearest.excess:
                nearest = Fitted(bias, worst)
            if worst <= 1 or bool((bias < 0).all()):
                break
            down = torch.where(excess > 1, rate * excess.log() + _STEP, 0)
            bias = bias - (sets.lowered * down[:, None]).amax(0)
        if nearest.excess <= 1:
            break
    return nearest


def find_sets(alike: Tensor, contributors: Sequence[str], newcomers: Collection[str] = ()) -> Sets:
    """Say which experts may not take too much together.

    Args:
        alike: [n, n], correlations; experts in the order in which they came.
        contributors: Whose each is, [n].
        newcomers: Contributors who count as one; where there are no others, each counts.
    """
    newcomers = set(newcomers) if set(contributors).difference(newcomers) else set[str]()
    first = _first_alike(alike, contributors)
    rows = [[name == one for name in contributors] for one in dict.fromkeys(contributors)]
    lowered = [*rows]
    for one in dict.fromkeys(first):
        rows.append([z == one for z in first])
        lowered.append([z == one and at != one for at, z in enumerate(first)])
    parties = {contributors[z] for z, leader in enumerate(first) if contributors[leader] == contributors[z]}
    if parties & newcomers:
        rows.append([name in newcomers for name in contributors])
        lowered.append(rows[-1])
        parties = {*(parties - newcomers), ""}
    return Sets(torch.tensor(rows), torch.tensor(lowered), len(parties))


def _first_alike(alike: Tensor, contributors: Sequence[str]) -> list[int]:
    """Find for each expert the earlier one that it is most like, of those that are like none; itself where none is.

    Another's counts before one's own: who has one like another's cannot hide it behind a second of his.
    """
    first: list[int] = []
    for z, row in enumerate(alike.tolist()):
        before = [other for other in range(z) if first[other] == other and row[other] >= ALIKE]
        others = [other for other in before if contributors[other] != contributors[z]]
        first.append(max(others or before, key=lambda other: row[other], default=z))
    return first
