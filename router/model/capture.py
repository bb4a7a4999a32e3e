"""Caps what experts take together: a bias for each, fitted on public text, that lowers whoever takes too much there.

An expert's share is the mean over tokens of the weight that it is given (`router.layer.topk`: the k best, a softmax
over them), so that all shares sum to 1. Of p parties each has a fair share of 1 / p. Three kinds of sets may not take
more than c fair shares: all that one contributor has, all that choose like one expert, and all that newcomers have. A
set S that takes more is lowered, again and again, until none does:

    bias_z -= log(share_S p / c) / 4             for z in S; of several sets, by the most that one asks for

Lowering one set only raises the shares of others, so whoever never takes too much keeps a bias of zero, and where
nobody does, nothing changes. With c >= 1 the sets cannot all take too much at once. Where tokens are so few, or so
alike, that there is no step between too much and too little, what came nearest is kept; finer steps are not tried where
that is near what tokens that are alike make inevitable.

The same serves a mixture (`router.methods.features.mixture`): with scores log c and every expert chosen, the weights
are the shares c / sum c of a request.

Experts choose alike where their scores go up and down together: by the correlation over the same tokens, which neither
a gate's scale changes nor any direction that the tokens do not have. Whoever came first stands for those who are like
him, and is not lowered for their sake; nor can anybody join two that were apart by standing between them.
"""

import math
from collections.abc import Callable, Collection, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

ALIKE = 0.9
"""Correlation of scores from which on two experts count as one."""
_RATES = (1 / 4, 1 / 16, 1 / 64)
"""Parts of the way that are gone at once; finer ones where the coarser miss."""
_LEAST = 0.008
"""Least excess, as a logarithm, by which a set that takes too much is lowered; with finer steps, by less."""
_ROUNDS = 1000
_NEAR = 1.1
"""How far above what nothing can help against is near enough, where too many tokens are alike."""
_ROUNDING = 1e-5
"""By how much an excess must differ from another, or from 1: else the order of sums would decide what follows."""
_SAME = 1e-4
"""Differences of a token's best score below which two tokens are alike."""
_SINGLY = 4
"""Experts a token up to which they are chosen singly."""
LISTED = 16
"""Experts that are listed for a token at first, for each that it is given."""


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


class _Chosen(NamedTuple):
    """Who is best for each token, among those listed."""

    values: Tensor
    """[k, t], their scores."""
    places: Tensor
    """[k, t], where they stand in the list."""


class Leaders:
    """The best experts of each token: as long as biases have not lowered these too far, the k best are among them.

    Biases only lower, so nobody who is not listed can be better than when the list was made.

    Args:
        listed: [l, t], scores of those listed, in any order.
        experts: [l, t], who they are.
        rest: [t], the best score of all others, or a bound on it; -inf where all are listed.
        scores: Gives the scores of all, [t, n].
    """

    def __init__(
        self, listed: Tensor, experts: Tensor, rest: Tensor, scores: Callable[[], Tensor] | None = None
    ) -> None:
        self.listed, self.experts, self.rest, self._scores = listed, experts, rest, scores

    @classmethod
    def of(cls, scores: Tensor, k: int) -> "Leaders":
        """List some more than k experts a token by their scores [t, n]."""
        return cls(*listed(scores, LISTED * k), lambda: scores)

    def joined(self, expert: int, scores: Tensor) -> "Leaders":
        """See one more, with its scores [t]."""
        more = torch.cat([self.listed, scores[None]])
        experts = torch.cat([self.experts, torch.full_like(self.experts[:1], expert)])
        if bool(self.rest.isneginf().all()):
            return Leaders(more, experts, self.rest)
        worst, places = more.min(dim=0)
        # The last one takes the place of who is worst.
        kept = torch.arange(len(self.listed))[:, None].expand(-1, len(scores))
        kept = torch.where(kept == places, len(self.listed), kept)
        return Leaders(more.gather(0, kept), experts.gather(0, kept), torch.maximum(self.rest, worst))

    def without(self, expert: int) -> "Leaders":
        """See one less."""
        return Leaders(self.listed.masked_fill(self.experts == expert, -math.inf), self.experts, self.rest)

    def shares(self, bias: Tensor, k: int) -> Tensor:
        """Average over tokens what the k best experts are given with a bias [n]; gives [n], which sums to 1.

        Args:
            bias: Added to the scores; not above that of a call before.
            k: Experts a token.
        """
        k = min(k, len(bias))
        chosen = self._chosen(bias, k)
        if self._scores and bool((chosen.values[-1] < self.rest).any()):
            scores = self._scores()  # somebody who is not listed may be better
            _, self.experts, self.rest = listed(scores + bias, len(self.listed))
            self.listed = scores.T.gather(0, self.experts)
            chosen = self._chosen(bias, k)
        experts, given = self.experts.gather(0, chosen.places), torch.softmax(chosen.values, dim=0)
        return bias.new_zeros(len(bias)).index_add_(0, experts.flatten(), given.flatten()) / given.shape[1]

    def _chosen(self, bias: Tensor, k: int) -> "_Chosen":
        """Choose the k best of those listed, best first."""
        biased = self.listed + bias.index_select(0, self.experts.flatten()).view_as(self.listed)
        if k > _SINGLY:
            return _Chosen(*biased.topk(k, dim=0))
        values, places = list[Tensor](), list[Tensor]()
        for _ in range(k):  # maxima are many times quicker than `topk`
            best, place = biased.max(dim=0)
            biased.scatter_(0, place[None], -math.inf)
            values.append(best)
            places.append(place)
        return _Chosen(torch.stack(values), torch.stack(places))


def fit_biases(scores: Tensor | Leaders, sets: Sets, k: int, most: float) -> Fitted:
    """Lower sets of experts until none takes too much.

    Each round costs one choice of k among the best few for each of t tokens.

    Args:
        scores: [t, n], in units of the softmax; or the leaders among them.
        sets: Who may not take too much together.
        k: Experts a token.
        most: The largest share that a set may have, in fair shares.
    """
    first = scores if isinstance(scores, Leaders) else Leaders.of(scores, k)
    (within, member), (sake, lowered) = sets.members.nonzero().T, sets.lowered.nonzero().T
    zeros, limit = first.listed.new_zeros(sets.members.shape[1]), most / sets.parties
    nearest, least = Fitted(zeros, math.inf), _least(first, k, limit)
    for rate in _RATES:
        bias, leaders = zeros, copy(first)
        for _ in range(_ROUNDS):
            if bool((bias < 0).all()):  # one was lowered for another's sake, round about: finer steps, or no more
                break
            shares = leaders.shares(bias, k)
            excess = shares.new_zeros(len(sets.members)).index_add_(0, within, shares[member]) / limit
            worst = excess.max().item()
            if worst < nearest.excess * (1 - _ROUNDING):
                nearest = Fitted(bias, worst)
            if worst <= 1 + _ROUNDING:
                break
            down = torch.where(excess > 1 + _ROUNDING, rate * (excess.log() + _LEAST), 0)
            bias = bias - zeros.scatter_reduce(0, lowered, down[sake], "amax")
        if nearest.excess <= max(1 + _ROUNDING, _NEAR * least):
            break
    return nearest


def _least(leaders: Leaders, k: int, limit: float) -> float:
    """Bound from below what somebody takes, over a limit: of tokens that are alike, one gets a k-th part or more."""
    best = (leaders.listed.amax(0) / _SAME).round()
    counts: Tensor = torch.unique(best, return_counts=True)[1]
    return counts.max().item() / len(best) / k / limit


def listed(scores: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best of scores [t, n], [l, t], who they are, and the best of the rest; so many, or all of them."""
    best, experts = scores.topk(min(length + 1, scores.shape[1]), dim=1)
    best, experts = best.T.contiguous(), experts.T.contiguous()
    if len(best) <= length:
        return best, experts, best.new_full(best.shape[1:], -math.inf)
    return best[:-1], experts[:-1], best[-1]


def find_sets(alike: Tensor, contributors: Sequence[str], newcomers: Collection[str] = ()) -> Sets:
    """Say which experts may not take too much together.

    Args:
        alike: [n, n], correlations; experts in the order in which they came.
        contributors: Whose each is, [n].
        newcomers: Contributors who count as one; where there are no others, each counts.
    """
    newcomers = set(newcomers) if set(contributors).difference(newcomers) else set[str]()
    first = _first_alike(alike, contributors)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(contributors))}
    owners, leaders = torch.tensor([numbers[each] for each in contributors]), torch.tensor(first)
    ones = torch.arange(len(numbers))[:, None] == owners
    distinct = torch.tensor(list(dict.fromkeys(first)))[:, None]
    alikes = distinct == leaders
    members, lowered = [ones, alikes], [ones, alikes & (distinct != torch.arange(len(first)))]
    parties = {contributors[z] for z, leader in enumerate(first) if contributors[leader] == contributors[z]}
    if parties & newcomers:
        members.append(torch.tensor([[name in newcomers for name in contributors]]))
        lowered.append(members[-1])
        parties = {*(parties - newcomers), ""}
    return Sets(torch.cat(members), torch.cat(lowered), len(parties))


def _first_alike(alike: Tensor, contributors: Sequence[str]) -> list[int]:
    """Find for each expert the earlier one that it is most like, of those that are like none; itself where none is.

    Another's counts before one's own: who has one like another's cannot hide it behind a second of his.
    """
    near: list[dict[int, float]] = [{} for _ in contributors]
    for z, other in torch.nonzero((alike >= ALIKE).tril(-1)).tolist():
        near[z][other] = alike[z, other].item()
    first: list[int] = []
    for z, like in enumerate(near):
        before = [other for other in like if first[other] == other]
        others = [other for other in before if contributors[other] != contributors[z]]
        first.append(max(others or before, key=like.__getitem__, default=z))
    return first
