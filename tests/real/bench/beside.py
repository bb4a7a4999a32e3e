"""Routing beside the oracle's on real questions, as arXiv 2402.05859 compares them: section 4.4, and Figure 3."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from router.model.routed_model import RoutedModel
from router.query.request import TaskInput
from tests.lab.routes import Traced, beside_oracle
from tests.real.bench.questions import FAMILIES, Question
from tests.real.bench.score import Scored

METHODS = ("phatgoose", "arrow", "nnls-token")
"""What chooses token by token."""
INPUTS = 2
"""Rows of a question that are looked at."""
LONGEST = 8
"""Tokens of an answer."""


def beside(
    model: RoutedModel, questions: Sequence[Question], found: Mapping[str, Scored], folder: Path
) -> dict[str, Traced]:
    """Compare routing with the oracle's on all questions that are answered rightly or not; heat maps go to a folder.

    Args:
        model: With its experts; it is asked to write.
        questions: Of one half.
        found: Rows of the table, among them experts alone.
        folder: Where one panel for each family goes.

    Returns:
        By method that all questions were asked of; nothing if no expert was asked alone, so that there is no oracle.
    """
    oracles = {q.name: oracle for q in questions if q.metric != "bits" and (oracle := _oracle(q, found))}
    looked_at = [question for question in questions if question.name in oracles]
    asked = {
        method: [
            TaskInput(question.name, row.input, oracles[question.name], fmean(scores[question.name].values))
            for question in looked_at
            for row in question.rows[:INPUTS]
        ]
        for method in METHODS
        if looked_at and method in found and oracles.keys() <= (scores := found[method].found).keys()
    }
    firsts = {question.family: question.name for question in reversed(looked_at)}
    drawn = [firsts[family] for family in FAMILIES if family in firsts]
    return beside_oracle(model, asked, drawn, folder, LONGEST)


def _oracle(question: Question, found: Mapping[str, Scored]) -> str:
    """Name the expert that is best at a question alone, of equals the first; empty if none was asked."""
    alone = {name: row.found[question.name] for name, row in found.items()
             if name.startswith("expert:") and question.name in row.found}  # fmt: skip
    return max(alone, key=lambda name: fmean(alone[name].values)).removeprefix("expert:") if alone else ""
