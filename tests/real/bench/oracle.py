"""Whom the oracle is chosen among: to ask every expert everything would cost more than all methods together.

Successive halving in one step: every expert alone answers the first rows of a question, and those with the smallest
loss answer all of it. So the oracle is at most what it would be if everybody was asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from router.query.request import RoutingChoice
from tests.real.bench.contributors import Contributor
from tests.real.bench.questions import Question
from tests.real.bench.score import Asked, Scored

FIRST_ROWS = 4
"""Rows of a question that every expert answers."""
FINALISTS = 4
"""Experts that answer all of it, besides whose task it is."""


def alone(expert: str) -> Asked:
    """Ask one expert alone."""
    return Asked(f"expert:{expert}", RoutingChoice(f"expert:{expert}"))


def first_rows(questions: Sequence[Question]) -> list[Question]:
    """Cut questions to the rows that every expert answers."""
    return [replace(question, rows=question.rows[:FIRST_ROWS]) for question in questions]


def finals(known: Sequence[Contributor], questions: Sequence[Question], heats: Mapping[str, Scored]) -> list[Asked]:
    """Choose whom each question is asked whole.

    Args:
        known: Contributors of different tasks.
        questions: What is asked.
        heats: By expert, what came of the first rows.

    Returns:
        A row for each expert. The one with the smallest loss over all that is nobody's own is asked everything, since
        it is the best individual.
    """
    asked: dict[str, list[str]] = {each.name: [] for each in known}
    for question in questions:
        losses = {name: fmean(row.found[question.name].nats) for name, row in heats.items()}
        best = sorted(losses, key=losses.__getitem__)[:FINALISTS]
        own = [each.name for each in known if each.task in question.own]
        for name in dict.fromkeys([*best, *own]):
            asked[name].append(question.name)
    strange = [question.name for question in questions if question.family != "held_in"]
    best_alone = min(asked, key=lambda name: fmean(fmean(heats[name].found[each].nats) for each in strange))
    asked[best_alone] = [question.name for question in questions]
    return [replace(alone(name), only=tuple(names)) for name, names in asked.items() if names]
