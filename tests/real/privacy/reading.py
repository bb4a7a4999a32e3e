"""What an attacker needs: rows behind an expert, rows like them that are not, and what the base sees of both."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.data.columns import DataColumns, DataSource
from client.data.examples import read_examples
from client.training import statistics
from client.workspace.paths import ClientWorkspace
from protocol.errors import Code, Refused
from router.base.batching import Prompt, TokenPair
from router.base.loading import Base
from router.base.tokens import IGNORED, encode_input, encode_target
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests.real.bench.contributors import Contributor
from tests.real.bench.questions import training
from tests.real.privacy.auc import Floats
from tests.real.tasks.task import Row

FEWEST = 20
"""Strangers, and rows of reference, below which nothing is told."""
_MANY = 100_000
_AT_ONCE = 16


@dataclass(frozen=True)
class Sides:
    """Rows of one task, as tokens."""

    name: str
    trained: Sequence[TokenPair]
    """What the expert was trained on."""
    told: Sequence[TokenPair]
    """Those of them that its mean is of."""
    members: Sequence[TokenPair]
    """Some of these, to be told from strangers."""
    strangers: Sequence[TokenPair]
    """Nobody's here, drawn as the members were."""
    reference: Sequence[TokenPair]
    """Drawn so, too: what an attacker has who knows the task."""

    @property
    def read(self) -> list[list[int]]:
        """Inputs of members, strangers and reference, in this order."""
        return [pair.input for pair in (*self.members, *self.strangers, *self.reference)]


def sides(base: Base, folder: Path, contributor: Contributor, seed: int, rows: int, reference: int) -> Sides:
    """Find who is a member by the client's own rules, and draw the others from the task.

    Args:
        base: The base model.
        folder: The contributor's workspace.
        contributor: Whose it is; the first slice of the task's rows.
        seed: Of the suite.
        rows: Members and strangers at most.
        reference: Rows of reference at most.

    Raises:
        Refused: `DATA_EMPTY` if the task has too few rows that the contributor lacks.
    """
    workspace = ClientWorkspace(folder)
    recipe = workspace.pool.spec.recipe
    source = DataSource((folder / "private.jsonl",), DataColumns(), workspace.split_key)
    examples = read_examples(source, base.tokenizer, base.architecture, recipe, positions=base.positions)
    told = statistics._spread(examples.train, min(recipe.statistics_rows, len(examples.train)))
    members = [_parted(row) for row in told]
    known = {tuple(_parted(row).input) for part in (examples.train, examples.held_out) for row in part}
    drawn = training(replace(contributor, turn=0, spoilt=False), seed, _MANY)
    fresh = fresh_rows(base, drawn, known)
    if len(fresh) < 2 * FEWEST:
        raise Refused(
            Code.DATA_EMPTY,
            f"The task of {contributor.name} has {len(fresh)} rows that its contributor lacks; needed: {2 * FEWEST}.",
            "Attack experts of larger tasks.",
        )
    # Where rows are few, strangers and reference get half each.
    rows, reference = min(rows, len(fresh) // 2), min(reference, len(fresh) - min(rows, len(fresh) // 2))
    some = random.Random(0).sample(members, min(rows, len(members)))
    trained = [_parted(row) for row in examples.train]
    return Sides(contributor.name, trained, members, some, fresh[:rows], fresh[rows : rows + reference])


def fresh_rows(base: Base, drawn: Iterable[Row], known: set[tuple[int, ...]]) -> list[TokenPair]:
    """Tokenise rows whose input is not known."""
    pairs = [
        TokenPair(
            encode_input(base.tokenizer, row.input, base.architecture),
            encode_target(base.tokenizer, row.targets[0], base.architecture),
        )
        for row in drawn
    ]
    return [pair for pair in pairs if tuple(pair.input) not in known]


def _parted(row: dict[str, list[int]]) -> TokenPair:
    begin = sum(label == IGNORED for label in row["labels"])
    return TokenPair(row["input_ids"][:begin], row["input_ids"][begin:])


def text_of(base: Base, pair: TokenPair) -> str:
    """Write an input out, which is what a mean is of."""
    return str(base.tokenizer.decode(pair.input, skip_special_tokens=True))


def seen(model: RoutedModel, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Have the base read rows of tokens; returns what every module sees on average, [n, d] by path."""
    reader = model.features.mixtures.reader
    paths = {path for expert in model.generation.pool.experts for path in expert.modules}
    by_length = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    sources = {reader.sources[path] for path in paths}
    pooled = reader.pooled([Prompt("", list(rows[at])) for at in by_length], sources)
    back = torch.tensor(np.argsort(by_length))
    pooled = {source: each[back] for source, each in pooled.items()}
    return {path: pooled[reader.sources[path]] for path in sorted(paths)}


def losses(model: RoutedModel, pairs: Sequence[TokenPair], method: str) -> Floats:
    """Score rows' targets, in nats a token."""
    by_length = sorted(range(len(pairs)), key=lambda at: len(pairs[at].input))
    found = np.zeros(len(pairs))
    for start in range(0, len(pairs), _AT_ONCE):
        places = by_length[start : start + _AT_ONCE]
        batch = [pairs[at] for at in places]
        inputs = [Prompt("", pair.input) for pair in batch]
        told = model.likelihoods(inputs, batch, RoutingChoice(method))
        found[places] = [-each.mean for each in told]
    return found
