"""What share of a request the experts of a task have, as solving for means finds it, against what is known of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from router.model.routed_model import RoutedModel
from tests.real.bench.questions import Question


@dataclass(frozen=True)
class Told:
    """What was found of one question, row by row; shares are of the sum of all."""

    estimated: dict[str, list[float]]
    """By task that the question consists of, what its experts have together."""
    largest: list[float]
    """What one expert has at most, not divided by the sum: below a half the request counts as unfamiliar."""


def estimate(model: RoutedModel, question: Question, tasks: Mapping[str, str]) -> Told:
    """Solve a question's rows for the experts that they are a mixture of.

    Args:
        model: With its experts.
        question: What is asked.
        tasks: By expert's name, what it was trained on.
    """
    pool = model.generation.pool
    found = model.features.mixtures.shares(pool, [row.input for row in question.rows]).shares
    whole = found.sum(1).clip(1e-9)
    estimated = {
        own: (found[:, [tasks[expert.name] == own for expert in pool.experts]].sum(1) / whole).tolist()
        for own in question.own
    }
    return Told(estimated, found.max(1).tolist())


def share_error(told: Mapping[str, Told], questions: Sequence[Question]) -> float:
    """Average how far estimated shares of known mixtures are from the true ones; not a number without any."""
    errors = [
        abs(value - true)
        for question in questions
        if question.family == "mixture"
        for own, true in question.own.items()
        for value in told[question.name].estimated[own]
    ]
    return fmean(errors) if errors else float("nan")
