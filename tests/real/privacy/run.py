"""All attacks on some experts of a pool."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from router.base.tokens import encode_input
from router.methods.features.covariance import Spread, spread_of
from router.methods.features.mixture import RIDGE, familiar
from router.methods.features.nnls import nnls
from router.model.routed_model import RoutedModel
from router.pool.expert import Expert
from tests.real.privacy import attacks
from tests.real.privacy.auc import ALL, Two
from tests.real.privacy.found import Found
from tests.real.privacy.reading import Sides, losses, seen, text_of

NOISE = (0.0, 0.3, 1.0, 3.0)
"""Of a mean, in lengths of the mean apart from public text."""
WORDS = 120
"""Rare words of one expert at most."""
TASK, PUBLIC = "other rows of the task known", "public text known"
ROWS, SINGLE, NAMES, TOPIC = (
    "Rows: members against strangers",
    "Rare words: of members against rare words of other rows of the task",
    "Names: of members against names in other rows of the task",
    "Rare words: of members against rare words of other experts' members",
)
Seen = Mapping[str, Tensor]


class Routed(NamedTuple):
    """Where strangers go, in a hundred."""

    own: float
    """Those of which their task's expert has the largest share."""
    familiar: float
    """Those of which an expert has half, as `nnls-request` counts them."""


@dataclass(frozen=True)
class Case:
    """One expert under attack."""

    expert: Expert
    sides: Sides
    rows: Seen
    """What modules see of `Sides.read`, [n, d] by path."""

    @property
    def ends(self) -> tuple[int, int]:
        """Where members end, and where strangers do."""
        members = len(self.sides.members)
        return members, members + len(self.sides.strangers)

    def ground(self, path: str) -> Spread:
        """Describe what a module sees of the reference."""
        return spread_of(self.rows[path][self.ends[1] :])


def attack(model: RoutedModel, every: Sequence[Sides]) -> tuple[Found, dict[float, Routed]]:
    """Attack experts by rows, words and loss.

    Args:
        model: The base with these experts.
        every: Their rows, in the model's order of experts.

    Returns:
        What was found, and where strangers still go, by the noise of means.
    """
    found, public = Found(), model.features.mixtures.public
    experts = model.generation.pool.experts
    cases = [Case(expert, each, seen(model, each.read)) for expert, each in zip(experts, every, strict=True)]
    spreads = {path: public.spread(path, "pooled") for path in cases[0].rows}
    for case in cases:
        by_mean(found, case, spreads)
        by_gate(found, case)
        by_loss(found, model, case.sides)
    by_words(found, model, cases, spreads)
    return found, {size: routing(cases, spreads, size) for size in NOISE}


def by_mean(found: Found, case: Case, public: Mapping[str, Spread]) -> None:
    """Tell members from strangers by the mean, with more and more noise on it."""
    own, end = case.ends
    for size in NOISE:
        told = _means(case.expert, public, size, 0)
        for knows in (TASK, PUBLIC) if size == 0 else (TASK,):
            grounds = {path: case.ground(path) if knows == TASK else public[path] for path in told}
            for metric in attacks.METRICS:
                scores = {
                    path: attacks.products(case.rows[path][:end], mean - grounds[path].mean, grounds[path], metric)
                    for path, mean in told.items()
                }
                found.add(ROWS, ("mean", f"noise {size:g}", knows, metric), scores, own)


def by_gate(found: Found, case: Case) -> None:
    """Tell members from strangers by the gate."""
    own, end = case.ends
    for metric in attacks.METRICS:
        scores = {
            path: attacks.products(case.rows[path][:end], module.gate, case.ground(path), metric)
            for path, module in case.expert.modules.items()
        }
        found.add(ROWS, ("gate", TASK, metric), scores, own)


def by_loss(found: Found, model: RoutedModel, sides: Sides) -> None:
    """Tell members from strangers by the expert's loss, which is known to work; by the base's nobody is a member."""
    own, pairs = len(sides.members), [*sides.members, *sides.strangers]
    base, expert = (losses(model, pairs, method) for method in ("base", f"expert:{sides.name}"))
    for label, low in (("loss of the base", base), ("loss of the expert", expert), ("its gain", expert - base)):
        found.put(ROWS, (label,), ALL, Two(-low[:own], -low[own:]))


def by_words(found: Found, model: RoutedModel, cases: Sequence[Case], public: Mapping[str, Spread]) -> None:
    """Tell rare words of members from others, by reading each alone and without reading."""
    base, draw = model.base, random.Random(0)
    texts = [[text_of(base, pair) for pair in case.sides.told] for case in cases]
    own, absent = [], []
    for case, mine in zip(cases, texts, strict=True):
        fresh = [text_of(base, pair) for pair in (*case.sides.strangers, *case.sides.reference)]
        trained = [text_of(base, pair) for pair in case.sides.trained]
        own.append(_some(attacks.rare(mine, fresh), draw))
        absent.append(_some(attacks.rare(fresh, trained), draw))
    if not (listed := sorted({word for words in (*own, *absent) for word in words})):
        return
    places = {word: at for at, word in enumerate(listed)}
    tokens = [encode_input(base.tokenizer, f" {word}", base.architecture) for word in listed]
    alone, lens = seen(model, tokens), attacks.Lens(base, tokens)
    for at, case in enumerate(cases):
        elsewhere = [word for other, words in enumerate(own) if other != at for word in words]
        others = sorted({*elsewhere} - {*own[at]} - {*absent[at]})
        for table, mine, theirs in (
            (SINGLE, own[at], absent[at]),
            (NAMES, list(filter(attacks.is_name, own[at])), list(filter(attacks.is_name, absent[at]))),
            (TOPIC, own[at], others),
        ):
            grounds = {path: public[path] if table == TOPIC else case.ground(path) for path in case.rows}
            rows = [places[word] for word in (*mine, *theirs)]
            if mine and theirs:
                _score_words(found, table, case.expert, grounds, (alone, lens), rows, len(mine))


def _score_words(
    found: Found,
    table: str,
    expert: Expert,
    grounds: Mapping[str, Spread],
    by: tuple[Seen, attacks.Lens],
    rows: Sequence[int],
    own: int,
) -> None:
    """Score the words that stand in some rows, of which the first so many are own, by mean and by gate."""
    alone, lens = by
    means = {path: mean - grounds[path].mean for path, mean in expert.means.items()}
    gates = {path: module.gate for path, module in expert.modules.items()}
    for told, vectors in (("mean", means), ("gate", gates)):
        for metric in attacks.METRICS:
            scores = {
                path: attacks.products(alone[path][rows], vector, grounds[path], metric)
                for path, vector in vectors.items()
            }
            found.add(table, (told, "read alone", metric), scores, own)
        for through in attacks.LENSES:
            scores = {path: lens.scores(path, vector, through)[rows] for path, vector in vectors.items()}
            found.add(table, (told, through), scores, own)


def _some(words: Sequence[str], draw: random.Random) -> list[str]:
    return draw.sample(words, min(WORDS, len(words)))


def _means(expert: Expert, public: Mapping[str, Spread], size: float, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {path: attacks.noisy(mean, public[path].mean, size, draw) for path, mean in expert.means.items()}


def routing(cases: Sequence[Case], public: Mapping[str, Spread], size: float) -> Routed:
    """Solve strangers for their shares, with noise on all means.

    Solved as `router.methods.features.mixture` does, over every module once.
    """
    paths = [path for path in cases[0].rows if all(path in case.expert.means for case in cases)]
    # Nobody draws the same noise as another.
    told = [_means(case.expert, public, size, at) for at, case in enumerate(cases)]
    gram, targets = np.zeros((len(cases), len(cases))), [np.zeros((0, 0))] * len(cases)
    for path in paths:
        spread = public[path]
        apart = torch.stack([each[path] for each in told]) - spread.mean
        solved = spread.raised(apart, RIDGE, -1).double() / len(spread.mean)
        gram += (solved @ apart.T.double()).numpy() / len(paths)
        for at, case in enumerate(cases):
            own, end = case.ends
            more = ((case.rows[path][own:end] - spread.mean).double() @ solved.T).numpy() / len(paths)
            targets[at] = more if not targets[at].size else targets[at] + more
    even = (gram + gram.T) / 2 + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
    solved_for = [(at, nnls(even, row)) for at, rows in enumerate(targets) for row in rows]
    alike = np.arange(len(cases))
    return Routed(
        100 * float(np.mean([c.argmax() == at for at, c in solved_for])),
        100 * float(np.mean([familiar(c, alike) for _, c in solved_for])),
    )
