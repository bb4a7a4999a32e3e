"""A fresh expert for a question, trained on the public rows nearest to it: what one does who knows no contributors.

It may look at the inputs that are asked, never at their targets. Rows that anybody may know are of the fields that
contributors have, but of none of their tasks (`tests.real.bench.questions.public`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from router.methods.features.embedder import Embedder
from router.query.request import RoutingChoice
from tests.real.bench.questions import Question
from tests.real.bench.score import Asked, Scored
from tests.real.bench.table import HALVES
from tests.real.tasks.task import Row

NAME: Literal["fresh-lora"] = "fresh-lora"
"""Of the row of the table, of each question's expert, and of the folder of all."""
NEAREST = 64
STEPS = 16
"""Of training; each question has them to itself, so that all together cost as much as a third of the experts."""


def asked(questions: Sequence[Question]) -> list[Question]:
    """List who gets an expert: the half that confirms, and experts' own tasks for reference."""
    return [question for question in questions if question.half != HALVES[0]]


def nearest(embedder: Embedder, question: Question, public: Sequence[Row]) -> list[Row]:
    """Choose the public rows whose inputs lie nearest to the mean of a question's, the nearest first."""
    wanted = embedder.embed([row.input for row in question.rows]).mean(0)
    likeness = embedder.embed([row.input for row in public]) @ wanted
    return [public[at] for at in likeness.argsort(descending=True)[:NEAREST].tolist()]


def one_row(question: Question) -> Asked:
    """Ask a question's own fresh expert, alone."""
    # Its files are named by it, and names of questions may differ by what no file's name may hold.
    name = hashlib.sha256(question.name.encode()).hexdigest()[:16]
    return Asked(f"{NAME}.{name}", RoutingChoice(f"expert:{NAME}"), NAME, only=(question.name,))


def together(found: Iterable[Scored]) -> Scored:
    """Make one row of the table out of all questions'."""
    return Scored(NAME, {name: each for row in found for name, each in row.found.items()})
