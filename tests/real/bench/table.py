"""From scores to a table: points by family with intervals, and what is better than what by how much.

A question counts in points, so that families of different metrics can be averaged: percent of rows answered rightly,
and where the metric is bits a byte, percent of the base's bits that are saved. Intervals are bootstrapped over the
questions of a family, pairs kept together: 95 in a hundred redrawn tables lie within.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from tests.real.bench.questions import FAMILIES, Half, Question
from tests.real.bench.score import Found, Scored

COLUMNS = ("all", *FAMILIES)
HALVES: tuple[Half, ...] = ("tuning", "confirming")
_DRAWS = 2000
Interval = tuple[float, float, float]
"""Mean, and from where to where."""
Points = Mapping[str, float]
"""By question."""


@dataclass(frozen=True)
class Table:
    """Rows of one half."""

    half: str
    points: dict[str, dict[str, float]]
    """By row and question."""
    questions: tuple[Question, ...]

    def of(self, family: str) -> list[str]:
        """Name the questions of a family; `all` is what nobody trained on."""
        return [q.name for q in self.questions if q.family == family or (family == "all" and q.family != "held_in")]


def tabulate(scored: Sequence[Scored], questions: Iterable[Question], half: str) -> Table:
    """Make the table of one half, and of what is held in; `oracle` and `best-individual` are chosen by the answers.

    Oracle is the expert that is best at a question, Best Individual the one that is best at all but the experts' own
    (arXiv 2402.05859, section 4.2); among those that were asked (`tests.real.bench.oracle`).
    """
    asked = tuple(question for question in questions if question.half in (half, "held-in"))
    found = {row.name: row.found for row in scored if row.found}
    base = found["base"]
    points = {
        name: {q.name: in_points(q, row[q.name], base[q.name]) for q in asked if q.name in row}
        for name, row in found.items()
    }
    singles = {name: points.pop(name) for name in [*points] if name.startswith("expert:")}
    points = {name: row for name, row in points.items() if len(row) == len(asked)}
    whole = [row for row in singles.values() if len(row) == len(asked)]
    if whole:
        held_out = [q.name for q in asked if q.half == half]
        points["oracle"] = {q.name: max(row[q.name] for row in singles.values() if q.name in row) for q in asked}
        points["best-individual"] = max(whole, key=lambda row: sum(row[name] for name in held_out))
    return Table(half, points, asked)


def in_points(question: Question, found: Found, base: Found) -> float:
    """Say how well a question was answered, 0 to 100; below 0 where more bits are needed than the base needs."""
    value = fmean(found.values)
    return 100 * (1 - value / fmean(base.values)) if question.metric == "bits" else 100 * value


def interval(values: Sequence[float]) -> Interval:
    """Average some values, with the interval that redrawing them gives."""
    drawn = _redrawn(np.asarray(values))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return round(fmean(values), 2), round(float(low), 2), round(float(high), 2)


def _redrawn(values: NDArray[np.float64]) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    return values[rng.integers(len(values), size=(_DRAWS, len(values)))].mean(1)


def summary(table: Table) -> dict[str, dict[str, Interval]]:
    """Average every row over the questions of each family, best first."""
    found = {
        name: {
            column: interval([row[each] for each in table.of(column)]) for column in COLUMNS if table.of(column)
        }
        for name, row in table.points.items()
    }  # fmt: skip
    return dict(sorted(found.items(), key=lambda entry: -entry[1].get("all", (math.nan,))[0]))


def ahead(table: Table, mine: str, theirs: str) -> dict[str, Interval]:
    """Say by how many points one row is ahead of another, question by question."""
    one, other = table.points[mine], table.points[theirs]
    return {
        column: interval([one[each] - other[each] for each in table.of(column)])
        for column in COLUMNS
        if table.of(column)
    }


def hurt(table: Table, scored: Mapping[str, Scored], name: str) -> list[str]:
    """Name the questions at which a row is below the base by more than its interval over the question's rows."""
    found = []
    for question in table.questions:
        mine, base = (scored[row].found[question.name].values for row in (name, "base"))
        sign = -1 if question.metric == "bits" else 1
        _, _, high = interval([sign * (one - other) for one, other in zip(mine, base, strict=True)])
        if high < 0:
            found.append(question.name)
    return found


def markdown(found: Mapping[str, Mapping[str, Interval]]) -> str:
    """Write a table for people."""
    columns = [column for column in COLUMNS if any(column in row for row in found.values())]
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in found.items():
        cells = (f"{mean:.1f} ({low:.1f} to {high:.1f})" for mean, low, high in (row[column] for column in columns))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
