"""What a task is, which of its rows lie on which side, and how a row is asked.

A row lies on one side for all tasks and seeds: the digest of its group decides, and the group is what near-duplicates
and translations share (a word, a source package, a manual page). So no part shares an input with another one, no
German text stands in a test whose English twin was trained on, and a word that is held out of one task is held out of
all of them.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from protocol.errors import Code, Refused
from tests.real.packages import find

Part = Literal["train", "held-in", "tuning", "confirming"]
Metric = Literal["exact", "choices", "bits"]
"""Exact match of a right answer, rank classification over the choices, or bits per byte of the target."""
Family = Literal["skill", "cell", "composition", "paraphrase", "bbh", "bbl", "novel"]

SHARES: dict[Part, int] = {"train": 70, "held-in": 10, "tuning": 10, "confirming": 10}
"""Of groups, in percent."""
SKEW = 2
"""How many times the rows of its rarest answer a classification may have of its commonest one."""


@dataclass(frozen=True)
class Row:
    """One example, as a source has it; a document is a row that asks nothing."""

    input: str
    targets: tuple[str, ...]
    """Every right answer."""
    choices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """What it shares with its like; without any, its input."""

    @property
    def part(self) -> Part:
        """Which side it lies on; with groups on several sides, the one that is furthest from training."""
        return max((_part(group) for group in self.groups or (self.input,)), key=get_args(Part).index)

    @property
    def unseen(self) -> bool:
        """Whether none of its groups is ever trained on."""
        return all(_part(group) != "train" for group in self.groups or (self.input,))


@dataclass(frozen=True)
class Task:
    """Rows of one kind from one source or several."""

    name: str
    family: Family
    field: str
    """Of life or of language; for documents, their language."""
    sources: tuple[str, ...]
    """Names of packages."""
    metric: Metric
    read: Callable[[], Iterable[Row]]
    wordings: tuple[str, ...] = ("{}",)
    """How contributors ask; each is drawn as often."""
    paraphrases: tuple[str, ...] = ()
    """How they never ask."""
    also: Family | None = None
    """A second suite that has it."""

    @property
    def licences(self) -> tuple[str, ...]:
        """What its sources may be used under."""
        return tuple(dict.fromkeys(find(name).licence for name in self.sources))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All its rows, none twice.

        Raises:
            Refused: `DATA_UNREADABLE` if a package is missing, `TASK_ROW` if a row has nothing to be right.
        """
        return tuple(merged(self.name, self.metric, self.read()))


def merged(task: str, metric: Metric, rows: Iterable[Row]) -> list[Row]:
    """Join rows that ask the same: all their answers are right; where one of given choices is, nobody knows which.

    Raises:
        Refused: `TASK_ROW` if a row has no target, no choices where the metric needs them, or a target that is none.
    """
    by_input: dict[tuple[str, ...], Row | None] = {}
    for row in rows:
        if not row.targets or not all(row.targets):
            raise Refused(Code.TASK_ROW, f"A row of {task} has no target.", "Look at its source.")
        chosen = len(row.choices) > 1 and len({*row.choices}) == len(row.choices) and {*row.targets} <= {*row.choices}
        if chosen != (metric == "choices"):
            raise Refused(
                Code.TASK_ROW, f"A row of {task} does not say what there is to choose.", "Look at its source."
            )
        # A document asks nothing and is itself what must not come twice; some rows ask by their choices alone.
        key = (" ".join((row.input or row.targets[0]).casefold().split()), *sorted(row.choices))
        before = by_input.get(key, row)
        if before is None or (row.choices and set(before.targets) != set(row.targets)):
            by_input[key] = None
        else:
            by_input[key] = replace(before, targets=tuple(dict.fromkeys((*before.targets, *row.targets))))
    return [row for row in by_input.values() if row is not None]


def balanced(rows: Iterable[Row], least: int = 1) -> list[Row]:
    """Leave out answers with too few rows, and rows of answers that have many more than the rarest.

    Args:
        rows: Each with one right answer; what may be chosen is what is left of their answers.
        least: Fewest rows of an answer.
    """
    by_answer: dict[str, list[Row]] = defaultdict(list)
    for row in {row.input: row for row in rows}.values():
        by_answer[row.targets[0]].append(row)
    kept = {answer: found for answer, found in by_answer.items() if len(found) >= least}
    most = SKEW * min(map(len, kept.values()), default=0)
    choices = tuple(sorted(kept))
    return [
        replace(row, choices=choices)
        for found in kept.values()
        for row in sorted(found, key=lambda row: _digest(row.input))[:most]
    ]


def majority(rows: Iterable[Row]) -> float:
    """Measure the share of rows that the commonest answer gets right."""
    counts = Counter(row.targets[0] for row in rows)
    return max(counts.values()) / counts.total()


def draw(task: Task, rows: Iterable[Row], part: Part, seed: int, count: int | None = None) -> list[Row]:
    """Draw some of a task's rows, worded.

    Args:
        task: Whose rows.
        rows: Which of them may be drawn.
        part: Which side they are for.
        seed: Of the draw and of the wordings.
        count: How many at most; None for all.
    """
    rng = random.Random(f"{task.name}/{part}/{seed}")
    drawn = list(rows)
    rng.shuffle(drawn)
    return [replace(row, input=rng.choice(task.wordings).replace("{}", row.input)) for row in drawn[:count]]


def _part(group: str) -> Part:
    at = int(_digest(" ".join(group.casefold().split())), 16) % 100
    for part, share in SHARES.items():
        if at < share:
            return part
        at -= share
    raise AssertionError(SHARES)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
