"""Every task, by name: who trains on it, who never does, and the rows of its parts.

    task = every()["past-tense"]
    rows(task, "train", seed=0, count=1000)        # worded rows; no part shares an input with another one

A contributor's task has all four parts. What nobody trains on has its own half only, tuning or confirming, as
`tests/real/split.toml` says: BIG-bench's suites with all their rows, compositions and cells of the grid with those
whose words or pages nobody trains on elsewhere, paraphrases with their task's rows of that half.
"""

import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path

from tests.real.tasks import (
    bigbench,
    code,
    compositions,
    debian,
    documents,
    freedict,
    places,
    reference,
    science,
    wordnet,
    words,
)
from tests.real.tasks.task import Part, Row, Task, draw

SPLIT = Path(__file__).parents[1] / "split.toml"
SUITES = ("bbh", "bbl", "novel")
MODULES = (bigbench, wordnet, freedict, words, places, debian, reference, science, code, compositions, documents)


@cache
def every() -> dict[str, Task]:
    """List all tasks by name; nothing is read yet."""
    found = [task for module in MODULES for task in module.tasks()]
    asked = [paraphrase(task) for task in found if task.paraphrases]
    return {task.name: task for task in (*found, *asked)}


def paraphrase(task: Task) -> Task:
    """Ask a contributor's task as nobody was taught to."""
    return replace(task, name=f"{task.name}/paraphrase", family="paraphrase", wordings=task.paraphrases, paraphrases=())


@cache
def split() -> dict[str, Part]:
    """Tell of each task that nobody trains on whether it tunes or confirms."""
    said = tomllib.loads(SPLIT.read_text())
    halves: tuple[Part, Part] = ("tuning", "confirming")
    return {name: half for half in halves for names in said[half].values() for name in names}


def contributed(task: Task) -> bool:
    """Tell whether contributors train on a task."""
    return task.name not in split()


def rows(task: Task, part: Part, seed: int, count: int | None = None) -> list[Row]:
    """Draw rows of one part, worded.

    Args:
        task: Whose rows.
        part: Which side.
        seed: Of the draw and of the wordings.
        count: How many at most; None for all.

    Raises:
        ValueError: A task that nobody trains on is on another side.
        Refused: `DATA_UNREADABLE` if a package is missing, `TASK_ROW` if a source is not what it was.
    """
    side = split().get(task.name, part)
    if side != part:
        raise ValueError(f"{task.name} is for {side}, not for {part}")
    if task.family in SUITES:
        kept = list(task.rows)
    elif contributed(task) or task.family == "paraphrase":
        kept = [row for row in task.rows if row.part == part]
    else:
        kept = [row for row in task.rows if row.unseen]
    return draw(task, kept, part, seed, count)
