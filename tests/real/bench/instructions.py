"""Task is not topic: how large an expert's share of its own documents is as they are asked about differently.

The same documents stand bare, in every wording that contributors use, and in every paraphrase that nobody uses.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

from router.base.batching import read_prompts
from router.model.routed_model import RoutedModel
from tests.real.bench.questions import ANSWER, Question
from tests.real.tasks import every
from tests.real.tasks.task import Task

Kind = Literal["bare", "wording", "paraphrase"]
ROWS = 6
"""Documents of a task."""
_LENGTHS = (0, 3, 6, 9, 12)
"""Tokens of an instruction from which on it counts as longer."""


@dataclass(frozen=True)
class Instructed:
    """What one instruction does to the shares of a task's documents."""

    task: str
    kind: Kind
    tokens: float
    """Mean length of what stands around the document."""
    own: float
    """Mean share of the task's experts together."""
    strangers: float
    """Mean share of the largest of all others."""


def instructed(model: RoutedModel, questions: Sequence[Question], tasks: Mapping[str, str]) -> list[Instructed]:
    """Solve documents of experts' own questions under every instruction of their tasks.

    Args:
        model: With its experts.
        questions: What is asked.
        tasks: By expert's name, what it was trained on.
    """
    pool, mixtures = model.generation.pool, model.features.mixtures
    found = []
    for question in questions:
        task = every().get(question.name)
        if question.family != "held_in" or task is None or not task.paraphrases:
            continue
        documents = [document(task, row.input) for row in question.rows[:ROWS]]
        own = [tasks[expert.name] == task.name for expert in pool.experts]
        for kind, wording in _wordings(task):
            inputs = [wording.replace("{}", each) + ANSWER for each in documents]
            shares = mixtures.shares(pool, inputs).shares
            mine, others = shares[:, own].sum(1), shares[:, [not each for each in own]].max(1, initial=0)
            around = fmean(_lengths(model, inputs)) - fmean(_lengths(model, [each + ANSWER for each in documents]))
            found.append(Instructed(task.name, kind, around, float(mine.mean()), float(others.mean())))
    return found


def document(task: Task, asked: str) -> str:
    """Take off the wording that a question stands in; of several that fit the longest."""
    for wording in sorted(task.wordings, key=len, reverse=True):
        before, after = wording.split("{}")
        if asked.startswith(before) and asked.endswith(after + ANSWER):
            return asked[len(before) : len(asked) - len(after + ANSWER)]
    raise ValueError(f"no wording of {task.name} fits {asked!r}")


def _wordings(task: Task) -> Iterator[tuple[Kind, str]]:
    yield "bare", "{}"
    yield from (("wording", wording) for wording in task.wordings if wording != "{}")
    yield from (("paraphrase", wording) for wording in task.paraphrases)


def _lengths(model: RoutedModel, inputs: Sequence[str]) -> list[int]:
    return [len(prompt.tokens) for prompt in read_prompts(model.base, inputs)]


def by_length(found: Sequence[Instructed]) -> list[tuple[Kind, str, int, float, float]]:
    """Average shares by kind and by length of the instruction: kind, tokens, instructions, own share, a stranger's."""
    rows: list[tuple[Kind, str, int, float, float]] = []
    for kind in get_args(Kind):
        for least, most in zip(_LENGTHS, (*_LENGTHS[1:], math.inf), strict=True):
            these = [each for each in found if each.kind == kind and least <= each.tokens < most]
            if these:
                named = f"{least}+" if most == math.inf else f"{least} to {most - 1}"
                own, strangers = fmean(each.own for each in these), fmean(each.strangers for each in these)
                rows.append((kind, named, len(these), own, strangers))
    return rows
