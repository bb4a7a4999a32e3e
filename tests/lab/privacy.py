"""What shared means tell, beside what they are good for: accuracy and an attack's rank for each way to share them.

    python -m tests.lab.privacy --size tiny --suite-seed 0 --seed 0

The attack is the simplest one: every word of the vocabulary is ranked by the cosine of its embedding with an expert's
mean less that of public text, and the rank of the expert's own key words (the words for its skill, its collocates and
its nouns) is averaged; half of the vocabulary is chance. Of all told inputs as wide as an embedding, the one that tells
most is taken.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from client import noisy
from protocol.bundle import open_bundle
from protocol.spec import Noise
from router.attach import deeper
from router.expert import Expert
from router.mixtures import Mixtures
from router.model import RoutedModel
from router.pool import ExpertPool
from router.request import RoutingChoice
from router.text import encode_input
from tests.lab.contenders import Contender
from tests.lab.evaluate import evaluate
from tests.lab.trial import EXAMPLES, Trial, assemble, train_base, train_one, write_public

Means = Mapping[str, Tensor]
METHODS = [Contender(name, RoutingChoice(name, k=4)) for name in ("nnls-request", "nnls-gates")]
EPSILONS = (8.0, 2.0, 0.5)
_ROWS = 500
_AT_ONCE = 64


@dataclass(frozen=True)
class Way:
    """A way to share means."""

    name: str
    means: Callable[[Expert], Means]


def ways(trial: Trial, model: RoutedModel) -> Iterator[Way]:
    """List ways to share, from everything to almost nothing."""
    reader = model.senses.mixtures.reader
    every = [path for path in reader.sources if reader.of_prompt(path)]
    deep = set(deeper(every))
    yield Way("all modules", lambda expert: expert.means)
    yield Way("deeper modules", lambda expert: {path: mean for path, mean in expert.means.items() if path in deep})
    for epsilon in EPSILONS:
        noise = Noise(epsilon=epsilon, delta=noisy.DELTA, rows=_ROWS)
        yield Way(
            f"deeper modules, epsilon {epsilon:g}",
            lambda expert, noise=noise: noisy.means(  # type: ignore[misc]
                model, [path for path in every if path in deep], _batches(trial, model, expert.name), noise
            ),
        )


def attack(trial: Trial, model: RoutedModel) -> float:
    """Rank experts' own key words by what they tell; returns the mean rank, at best 1."""
    public, words = model.senses.mixtures.public, trial.world.vocabulary
    to_id = model.base.tokenizer.convert_tokens_to_ids
    table = model.base.model.get_input_embeddings().weight.detach()[[to_id(word) for word in words]].double()
    table = torch.nn.functional.normalize(table - table.mean(0), dim=1)
    reader = model.senses.mixtures.reader
    ranks: dict[str, list[float]] = {}
    for expert in model.generation.pool.experts:
        skill = trial.world.skills[expert.name]
        own = {*skill.synonyms, *skill.collocates, *skill.words}
        for path in set(map(reader.sources.__getitem__, expert.means)) & set(expert.means):
            if reader.of_prompt(path) and len(expert.means[path]) == table.shape[1]:
                apart = (expert.means[path] - public.spread(path, "pooled").mean).double()
                place = (table @ apart).argsort(descending=True).argsort() + 1
                mine = [int(place[at]) for at, word in enumerate(words) if word in own]
                ranks.setdefault(path, []).append(sum(mine) / len(mine))
    return min(sum(each) / len(each) for each in ranks.values())


def measure(trial: Trial, model: RoutedModel) -> Iterator[dict[str, object]]:
    """Measure every way to share."""
    rows, plain, senses = trial.rows(trial.world.tasks()), model.generation, model.senses
    families = {task.name: task.family for task in trial.world.tasks()}
    for way in ways(trial, model):
        pool = ExpertPool()
        for expert in plain.pool.experts:
            pool = pool.add(replace(expert, means=way.means(expert)))
        model.generation = replace(plain, pool=pool)
        # What is known of an expert is kept by its digest, which tells its means: here they change under it.
        mixtures = Mixtures(senses.mixtures.reader, senses.mixtures.public)
        model.senses = replace(senses, mixtures=mixtures)
        scores = evaluate(model, rows, METHODS)
        held_out = [task for task in rows if families[task] != "held_in"]
        exact = {
            name: round(100 * sum(found[task] for task in held_out) / len(held_out), 1)
            for name, found in scores.exact.items()
        }
        yield {"way": way.name, "rank": round(attack(trial, model), 1), "words": len(trial.world.vocabulary), **exact}


def _batches(trial: Trial, model: RoutedModel, name: str) -> Iterator[dict[str, Tensor]]:
    base = model.base
    rows: Sequence[list[int]] = [
        encode_input(base.tokenizer, row["input"], base.architecture)
        for row in trial.world.training(name, trial.seed, EXAMPLES)[:_ROWS]
    ]
    for start in range(0, _ROWS, _AT_ONCE):
        some = [torch.tensor(row) for row in rows[start : start + _AT_ONCE]]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=-1)
        mask = ids >= 0
        # Labels of a decoder-only row lie beside its prompt; an encoder-decoder's are of no interest here.
        labels = torch.full_like(ids, -100)
        if base.architecture == "encoder-decoder":
            labels[:, 0] = 0
        yield {"input_ids": ids.clamp(min=0), "attention_mask": mask.long(), "labels": labels}


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
