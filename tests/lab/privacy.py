"""What shared means tell, beside what they are good for: accuracy and an attack's success for each way to share them.

    python -m tests.lab.privacy --size tiny --suite-seed 0 --seed 0

The attacker has the base, public text and what a bundle tells. The base reads every word of the vocabulary alone, and
words are ranked by the product of what a word makes a module see with the expert's mean less public text's, or with its
gate where no mean is told; as it is, and in the metric of public tokens, where it estimates how much more often the
data have a word than public text has it. Own are the words that an expert's training rows ask by, with their collocates
and nouns. Two figures: their mean rank (half of the vocabulary is chance), and which share of as many best guesses is
right. Of all modules that see prompts and both products, the one that tells most is taken.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

from client.training import private_means
from protocol.bundle import open_bundle
from protocol.spec import Noise
from router.base.batching import encode_pairs, pair_batch
from router.base.module_paths import deeper
from router.methods.features.mixture import Mixtures
from router.model.routed_model import RoutedModel
from router.pool.expert import Expert
from router.pool.pool import ExpertPool
from router.query.request import RoutingChoice
from tests.lab.contenders import Contender
from tests.lab.evaluate import evaluate
from tests.lab.skills import Skill
from tests.lab.table import by_family
from tests.lab.trial import EXAMPLES, Trial, assemble, train_base, train_one, write_public

Means = Mapping[str, Tensor]
METHODS = [
    Contender("phatgoose", RoutingChoice("phatgoose")),
    *(Contender(name, RoutingChoice(name, k=4)) for name in ("nnls-request", "nnls-gates")),
]
EPSILONS = (8.0, 2.0, 0.5)
ROWS = 500
"""Rows that noisy means are of."""
_RIDGE = 0.1
"""Of public tokens' covariance, as where tokens are routed by means."""
_AT_ONCE = 64


@dataclass(frozen=True)
class Way:
    """A way to share means."""

    name: str
    means: Callable[[Expert], Means]


class Told(NamedTuple):
    """How well an attack does."""

    rank: float
    """Mean rank of own words among all."""
    guessed: float
    """Share of the best guesses, as many as there are own words, that is right."""


def ways(trial: Trial, model: RoutedModel) -> Iterator[Way]:
    """List ways to share, from nothing beside gates to everything, and back with noise."""
    reader = model.features.mixtures.reader
    every = [path for path in reader.sources if reader.of_prompt(path)]
    deep = set(deeper(every))
    yield Way("gates alone", lambda _: {})
    yield Way("all modules", lambda expert: expert.means)
    yield Way("deeper modules", lambda expert: {path: mean for path, mean in expert.means.items() if path in deep})
    for epsilon in EPSILONS:
        for name, paths in (("all modules", every), ("deeper modules", [path for path in every if path in deep])):
            yield Way(f"{name}, epsilon {epsilon:g}", partial(_noisy, trial, model, paths, epsilon))


def _noisy(trial: Trial, model: RoutedModel, paths: Sequence[str], epsilon: float, expert: Expert) -> Means:
    rows = trial.world.training(expert.name, trial.seed, EXAMPLES)[:ROWS]
    pairs = encode_pairs(model.base, [row["input"] for row in rows], [row["target"] for row in rows])

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(pairs), _AT_ONCE):
            batch, labels = pair_batch(model.base, pairs[start : start + _AT_ONCE])
            yield batch | {"labels": labels}

    return private_means.means(
        model, paths, batches(), Noise(epsilon=epsilon, delta=private_means.DELTA, rows=len(rows))
    )


def own_words(skill: Skill) -> set[str]:
    """Name the words that tell a skill's training rows from others: the last synonym is never in them."""
    heard = skill.synonyms[:-1] or skill.synonyms
    return {*heard, *skill.collocates, *skill.words}


def attack(model: RoutedModel, words: Sequence[str], own: Mapping[str, set[str]]) -> Told:
    """Guess experts' words from what they tell.

    Args:
        model: With the experts.
        words: Every word there is.
        own: By expert, its own words.

    Returns:
        The mean over experts, at the module that tells most.
    """
    reader, public = model.features.mixtures.reader, model.features.mixtures.public
    sources = {path: source for path, source in reader.sources.items() if reader.of_prompt(path)}
    plain = {source: each - each.mean(0) for source, each in reader.pooled(words, set(sources.values())).items()}
    spreads = {source: public.spread(source, "token") for source in plain}
    whitened = {source: spreads[source].raised(each, _RIDGE, -1) for source, each in plain.items()}
    found = []
    for seen, (path, source) in product((plain, whitened), sources.items()):
        told = []
        for expert in model.generation.pool.experts:
            if path in expert.means:
                vector = expert.means[path] - spreads[source].mean
            elif not expert.means:
                vector = expert.modules[path].gate
            else:
                continue
            told.append(_told(seen[source] @ vector, words, own[expert.name]))
        if told:
            found.append(Told(fmean(each.rank for each in told), fmean(each.guessed for each in told)))
    return min(found)


def _told(scores: Tensor, words: Sequence[str], mine: set[str]) -> Told:
    """Hold scores [words] against one expert's own words."""
    order = [words[at] in mine for at in scores.argsort(descending=True).tolist()]
    return Told(fmean(place for place, own in enumerate(order, 1) if own), sum(order[: len(mine)]) / len(mine))


def measure(trial: Trial, model: RoutedModel) -> Iterator[dict[str, object]]:
    """Measure every way to share."""
    tasks, words = trial.world.tasks(), trial.world.vocabulary
    rows, plain, features = trial.rows(tasks), model.generation, model.features
    own = {expert.name: own_words(trial.world.skills[expert.name]) for expert in plain.pool.experts}
    for way in ways(trial, model):
        pool = ExpertPool()
        for expert in plain.pool.experts:
            pool = pool.add(replace(expert, means=way.means(expert)))
        model.generation = replace(plain, pool=pool)
        # What is known of an expert is kept by its digest, which tells its means: here they change under it.
        mixtures = Mixtures(features.mixtures.reader, features.mixtures.public)
        model.features = replace(features, mixtures=mixtures)
        scores = evaluate(model, rows, METHODS)
        exact = {name: round(by_family(found, tasks)["all"], 1) for name, found in scores.exact.items()}
        told = attack(model, words, own)
        yield {"way": way.name, "rank": round(told.rank, 1), "guessed": round(told.guessed, 2)} | exact
    model.generation, model.features = plain, features


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not there yet, measure, and print one JSON document a line."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.privacy", description=__doc__)
    parser.add_argument("--size", choices=("toy", "tiny", "small"), default="tiny")
    parser.add_argument("--architecture", choices=("encoder-decoder", "decoder-only"), default="encoder-decoder")
    parser.add_argument("--suite-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/lab"), help="where everything lies")
    given = parser.parse_args(arguments)
    trial = Trial(given.size, given.suite_seed, given.seed, given.architecture, given.out.resolve())
    base = train_base(trial)
    bundles = [open_bundle(train_one(trial, base, expert)) for expert in trial.world.experts]
    for found in measure(trial, assemble(base, bundles, write_public(trial))):
        sys.stdout.write(json.dumps({"schema": 1, **found}) + "\n")


if __name__ == "__main__":
    main()
