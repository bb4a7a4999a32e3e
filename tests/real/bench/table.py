"""From scores to a table: points by family with intervals, and what is better than what by how much.

A question counts in points, so that families of different metrics can be averaged: percent of rows answered rightly,
and where the metric is bits a byte, percent of the base's bits that are saved. Beside points stand nats, the loss of
the right answer a token, which tells methods apart where a few rows of yes and no cannot. Intervals are bootstrapped
over the questions of a family, pairs kept together: 95 in a hundred redrawn tables lie within.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tests.real.bench.questions import FAMILIES, Half, Question
from tests.real.bench.score import Found, Scored

COLUMNS = ("all", *FAMILIES)
HALVES: tuple[Half, ...] = ("tuning", "confirming")
_DRAWS = 2000
Interval = tuple[float, float, float]
"""Mean, and from where to where."""
Measure = Literal["points", "nats"]


@dataclass(frozen=True)
class Table:
    """Rows of one half."""

    half: str
    points: dict[str, dict[str, float]]
    """By row and question; more is better."""
    nats: dict[str, dict[str, float]]
    """Likewise; less is better."""
    questions: tuple[Question, ...]

    def by(self, measure: Measure) -> dict[str, dict[str, float]]:
        """Return what was measured, by row and question."""
        return self.points if measure == "points" else self.nats

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
    nats = {
        name: {q.name: fmean(row[q.name].nats) for q in asked if q.name in row} for name, row in found.items()
    }  # fmt: skip
    singles = [name for name in found if name.startswith("expert:")]
    whole = [name for name in singles if len(points[name]) == len(asked)]
    if whole:
        held_out = [q.name for q in asked if q.half == half]
        best = max(whole, key=lambda name: sum(points[name][each] for each in held_out))
        for measured, better in ((points, max), (nats, min)):
            measured["oracle"] = {
                q.name: better(measured[name][q.name] for name in singles if q.name in measured[name]) for q in asked
            }
            measured["best-individual"] = measured[best]
    shown = [name for name, row in points.items() if len(row) == len(asked) and name not in singles]
    return Table(half, {name: points[name] for name in shown}, {name: nats[name] for name in shown}, asked)


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


def summary(table: Table, measure: Measure = "points") -> dict[str, dict[str, Interval]]:
    """Average every row over the questions of each family, best first."""
    found = {
        name: {
            column: interval([row[each] for each in table.of(column)]) for column in COLUMNS if table.of(column)
        }
        for name, row in table.by(measure).items()
    }  # fmt: skip
    sign = -1 if measure == "points" else 1
    return dict(sorted(found.items(), key=lambda entry: sign * entry[1].get("all", (math.nan,))[0]))


def ahead(table: Table, mine: str, theirs: str, measure: Measure = "points") -> dict[str, Interval]:
    """Say by how many points more, or by how many nats less, one row is ahead of another, question by question."""
    one, other = (table.by(measure)[name] for name in ((mine, theirs) if measure == "points" else (theirs, mine)))
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


def markdown(found: Mapping[str, Mapping[str, Interval]], measure: Measure = "points") -> str:
    """Write a table for people."""
    digits = 1 if measure == "points" else 2
    columns = [column for column in COLUMNS if any(column in row for row in found.values())]
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in found.items():
        cells = (" to ".join(f"{each:.{digits}f}" for each in row[column][1:]) for column in columns)
        told = (f"{row[column][0]:.{digits}f} ({cell})" for column, cell in zip(columns, cells, strict=True))
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"
