"""What a routed model makes of the rows of a task.

Source: arXiv 2402.05859, section 4, and its code. Rank classification: of the given choices the model takes the one
whose tokens, the end token among them, it finds likeliest on average, so that a long choice does not lose for its
length. Where choices are equally likely the first one is taken, and the row counts as tied.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from protocol.errors import Code, Refused
from router.base.batching import encode_pairs
from router.base.memory import memory_watched
from router.evaluation.metrics import ACCURACY, measured
from router.evaluation.prompts import BatchLimits, Prompts
from router.evaluation.rows import Task
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice

Advance = Callable[[int], None]
"""Told how many more rows are done."""


class Judged(NamedTuple):
    """What the model answered to one row, and how good that is."""

    number: int
    """The row's."""
    answer: str
    metrics: dict[str, float]
    tied: bool = False
    """Whether another choice was as likely as the one that was taken."""


def judge(
    model: RoutedModel, task: Task, prompts: Prompts, choice: RoutingChoice, limits: BatchLimits, advance: Advance
) -> list[Judged]:
    """Have a model answer the rows of a task, and measure the answers.

    Args:
        model: The routed model.
        task: The rows.
        prompts: What they ask.
        choice: How they are routed.
        limits: How many at once.
        advance: Called after every batch.

    Returns:
        One for each row, in their order.

    Raises:
        Refused: What the method refuses, or `NOT_FINITE` if the model's figures are none.
        Unavailable: `MEMORY_FULL`.
    """
    with memory_watched():
        return (_rank if task.ranked else _write)(model, task, prompts, choice, limits, advance)


def _rank(
    model: RoutedModel, task: Task, prompts: Prompts, choice: RoutingChoice, limits: BatchLimits, advance: Advance
) -> list[Judged]:
    pairs = [(at, place) for at in prompts.by_length for place in range(len(task.rows[at].choices))]
    means = [[math.nan] * len(row.choices) for row in task.rows]
    for start in range(0, len(pairs), limits.batch):
        batch = pairs[start : start + limits.batch]
        inputs = [prompts.prompts[at] for at, _ in batch]
        tokens = encode_pairs(model.base, inputs, [task.rows[at].choices[place] for at, place in batch])
        for (at, place), found in zip(batch, model.likelihoods(inputs, tokens, choice), strict=True):
            if not math.isfinite(found.mean):
                raise _not_finite(task.rows[at].number, choice)
            means[at][place] = found.mean
        advance(sum(place == len(task.rows[at].choices) - 1 for at, place in batch))
    return [
        Judged(row.number, row.choices[first], {ACCURACY: float(row.choices[first] in row.targets)}, tied)
        for row, (first, tied) in zip(task.rows, map(likeliest, means), strict=True)
    ]


def likeliest(means: Sequence[float]) -> tuple[int, bool]:
    """Return the position of the largest figure, the first of equals, and whether there are equals."""
    best = max(means)
    return means.index(best), means.count(best) > 1


def _write(
    model: RoutedModel, task: Task, prompts: Prompts, choice: RoutingChoice, limits: BatchLimits, advance: Advance
) -> list[Judged]:
    order = prompts.by_length
    said: dict[int, str] = {}
    for start in range(0, len(order), limits.batch):
        batch = order[start : start + limits.batch]
        answers = model.generate([prompts.prompts[at] for at in batch], choice, max_new_tokens=limits.new_tokens)
        said |= zip(batch, answers, strict=True)
        advance(len(batch))
    return [Judged(row.number, said[at], measured(said[at], row.targets)) for at, row in enumerate(task.rows)]


def _not_finite(number: int, choice: RoutingChoice) -> Refused:
    return Refused(
        Code.NOT_FINITE,
        f"With method {choice.method or 'of the release'} the model's likelihoods for row {number} of the tasks are no "
        "finite numbers.",
        "Load the base in a larger dtype, or leave the method out.",
    )
