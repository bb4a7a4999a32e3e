"""Who contributes to the pool: which task, how many rows, which rank; decided before any score.

The first n of `CONTRIBUTORS` are the pool of n, so pools are nested and each is spread over fields: skills with short
rows, among them both steps of the compositions, and cells of the grid that cover the held-out ones' rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Size = Literal["smoke", "small", "full"]
SIZES: dict[Size, int] = {"smoke": 3, "small": 8, "full": 36}
"""Contributors of different tasks."""
POOLS = (6, 12, 24, 36)
"""Sizes of pools for the plot of scaling."""

_TASKS = (
    "past-tense", "opposite", "sentiment", "country-of-city", "section", "en/manual",
    "capital", "question-formation", "syllables", "fr/manual", "topic-of-gloss", "intent",
    "negation", "plural", "english-french", "de/manual", "field-of-sense", "rhyme",
    "diagnosis", "formula", "word-origin", "fr/handbook", "es/handbook", "question-type",
    "english-spanish", "subregion", "people-of", "noun-of-verb", "word-of-gloss", "de/description",
    "device-maker", "programmed-in", "claim", "date", "da/manual", "ru/description",
)  # fmt: skip
CELLS = {task for task in _TASKS if "/" in task}
"""Those of the tasks that are running text."""
_RANKS = {"capital": 4, "intent": 4, "section": 16, "field-of-sense": 16}
"""Where it is not the pool's."""
_AGAIN = ("past-tense", "past-tense", "section", "topic-of-gloss", "fr/manual")
"""Tasks of which further contributors have other rows."""
_SPOILT = ("opposite", "sentiment", "section", "question-type")
"""Tasks of which somebody has the inputs with other rows' targets."""


@dataclass(frozen=True)
class Contributor:
    """One who trains an expert."""

    name: str
    task: str
    rank: int | None = None
    """None for the pool's."""
    turn: int = 0
    """Which slice of the task's rows is theirs."""
    spoilt: bool = False
    """Whether the targets went astray."""

    @property
    def document(self) -> bool:
        """Whether the rows are pieces of running text."""
        return self.task in CELLS


def contributors(size: Size) -> list[Contributor]:
    """List the contributors of different tasks, in the order in which pools grow."""
    return [Contributor(task.replace("/", "."), task, _RANKS.get(task)) for task in _TASKS[: SIZES[size]]]


def further(known: Sequence[Contributor]) -> list[Contributor]:
    """List who else contributes to tasks that a pool knows: with other rows, and with targets that went astray."""
    tasks = {each.task for each in known}
    turns: dict[str, int] = {}
    found = []
    for task in _AGAIN:
        if task in tasks:
            turns[task] = turn = turns.get(task, 0) + 1
            found.append(Contributor(f"{task.replace('/', '.')}.{turn + 1}", task, turn=turn))
    spoilt = [Contributor(f"spoilt.{task}", task, turn=9, spoilt=True) for task in _SPOILT if task in tasks]
    return [*found, *spoilt]
