"""What a routed model makes of the rows of a task.

Source: arXiv 2402.05859, section 4, and its code. Rank classification: of the given choices the model takes the one
whose tokens, the end token among them, it finds likeliest on average, so that a long choice does not lose for its
length. Where choices are equally likely the first one is taken, and the row counts as tied.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from protocol.errors import Code, Refused
from router.base.batching import encode_pairs
from router.base.memory import memory_watched
from router.base.progress import bar
from router.evaluation.metrics import ACCURACY, measured
from router.evaluation.prompts import BatchLimits, Prompts
from router.evaluation.rows import Task
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice

Item = TypeVar("Item")


class Judged(NamedTuple):
    """What the model answered to one row, and how good that is."""

    number: int
    """The row's."""
    answer: str
    metrics: dict[str, float]
    tied: bool = False
    """Whether another choice was as likely as the one that was taken."""


class Score(NamedTuple):
    """How one method did on one task."""

    metrics: dict[str, float]
    """Means over the rows, in [0, 1]."""
    ties: int = 0
    """Rows in which the first of equally likely choices was taken."""
    expert: str | None = None
    """Who answered alone, where the method is one that takes the best expert."""


def judge(model: RoutedModel, task: Task, prompts: Prompts, choice: RoutingChoice, limits: BatchLimits) -> list[Judged]:
    """Have a model answer the rows of a task, and measure the answers, row by row.

    Raises:
        Refused: What the method refuses, or `NOT_FINITE` if the model's figures are none.
        Unavailable: `MEMORY_FULL`.
    """
    with memory_watched():
        return (_rank if task.ranked else _write)(model, task, prompts, choice, limits)


def _rank(model: RoutedModel, task: Task, prompts: Prompts, choice: RoutingChoice, limits: BatchLimits) -> list[Judged]:
    pairs = [(at, place) for at in prompts.by_length for place in range(len(task.rows[at].choices))]
    means = [[math.nan] * len(row.choices) for row in task.rows]
    for batch in _batches(pairs, task, choice, limits):
        inputs = [prompts.prompts[at] for at, _ in batch]
        tokens = encode_pairs(model.base, inputs, [task.rows[at].choices[place] for at, place in batch])
        for (at, place), found in zip(batch, model.likelihoods(inputs, tokens, choice), strict=True):
            if not math.isfinite(found.mean):
                raise Refused(
                    Code.NOT_FINITE,
                    f"With method {choice.method or 'of the release'} the model's likelihoods for row "
                    f"{task.rows[at].number} of the tasks are no finite numbers.",
                    "Load the base in a larger dtype, or leave the method out.",
                )
            means[at][place] = found.mean
    return [
        Judged(row.number, row.choices[first], {ACCURACY: float(row.choices[first] in row.targets)}, tied)
        for row, (first, tied) in zip(task.rows, map(likeliest, means), strict=True)
    ]


def likeliest(means: Sequence[float]) -> tuple[int, bool]:
    """Return the position of the largest figure, the first of equals, and whether there are equals."""
    best = max(means)
    return means.index(best), means.count(best) > 1


def _write(
    model: RoutedModel, task: Task, prompts: Prompts, choice: RoutingChoice, limits: BatchLimits
) -> list[Judged]:
    said: dict[int, str] = {}
    for batch in _batches(prompts.by_length, task, choice, limits):
        answers = model.generate([prompts.prompts[at] for at in batch], choice, max_new_tokens=limits.new_tokens)
        said |= zip(batch, answers, strict=True)
    return [Judged(row.number, said[at], measured(said[at], row.targets)) for at, row in enumerate(task.rows)]


def _batches(order: Sequence[Item], task: Task, choice: RoutingChoice, limits: BatchLimits) -> Iterator[Sequence[Item]]:
    for start in bar(range(0, len(order), limits.batch), f"{choice.method}: {task.name}"):
        yield order[start : start + limits.batch]
