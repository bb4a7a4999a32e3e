"""From scores of several trials to one table: a document for programs, Markdown for people."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.lab.evaluate import Scores
from tests.lab.world import FAMILIES, Task

COLUMNS = ("all", *FAMILIES, "held_in")
_EXPERT = "expert:"
_ORDER = (
    "base", "parameter-average", "merged", "uniform", "arrow", "spectr", "lag", "joint",
    "average-activation", "phatgoose", "retrieval", "nnls-fixed:1.5", "nnls-request", "nnls-cautious",
    "nnls-token", "nnls-gates",
    "best-individual", "oracle", "multitask",
)  # fmt: skip


def with_chosen(scores: Scores, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Add Oracle and Best Individual, which evaluation chooses among the experts, as arXiv 2402.05859 does.

    Oracle takes the best expert of each task, Best Individual the one that is best over all tasks but the experts' own.

    Args:
        scores: Of one trial; rows `expert:NAME` are taken out.
        tasks: All tasks.
    """
    found = {name: row for name, row in scores.exact.items() if not name.startswith(_EXPERT)}
    singles = [row for name, row in scores.exact.items() if name.startswith(_EXPERT)]
    if singles:
        held_out = [task.name for task in tasks if task.family != "held_in"]
        found["oracle"] = {task.name: max(row[task.name] for row in singles) for task in tasks}
        found["best-individual"] = max(singles, key=lambda row: sum(row[name] for name in held_out))
    return found


def by_family(row: Mapping[str, float], tasks: Iterable[Task]) -> dict[str, float]:
    """Average a row over the tasks of each family, in percent; `all` is every task but the experts' own."""
    members: dict[str, list[float]] = {}
    for task in tasks:
        members.setdefault(task.family, []).append(row[task.name])
        if task.family != "held_in":
            members.setdefault("all", []).append(row[task.name])
    return {column: 100 * statistics.fmean(members[column]) for column in COLUMNS if column in members}


def summarise(trials: Sequence[Scores], tasks: Sequence[Task]) -> dict[str, dict[str, list[float]]]:
    """Average over trials that differ by their seed alone.

    Returns:
        Mean and standard deviation over trials, in percent, by row and column; rows that every trial has.
    """
    rows = [{name: by_family(row, tasks) for name, row in with_chosen(trial, tasks).items()} for trial in trials]
    names = sorted((name for name in rows[0] if all(name in trial for trial in rows)), key=_rank)
    return {
        name: {column: _spread([trial[name][column] for trial in rows]) for column in rows[0][name]} for name in names
    }


def markdown(summary: Mapping[str, Mapping[str, Sequence[float]]], skipped: Mapping[str, str]) -> str:
    """Write the table for people."""
    columns = [column for column in COLUMNS if any(column in row for row in summary.values())]
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in summary.items():
        cells = (f"{row[column][0]:.1f} ± {row[column][1]:.1f}" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"Left out: {name}. {reason}" for name, reason in skipped.items())]
    return "\n".join(lines).rstrip() + "\n"


def costs(expert: Sequence[float], gates: Mapping[int, Sequence[float]]) -> str:
    """Write what training took, for people.

    Args:
        expert: Seconds of CPU an expert, by trial.
        gates: The same for gates, by their steps.
    """
    whole = statistics.fmean(expert)
    lines = [
        "| trained | seconds of CPU | share of the expert's |",
        "|---|---|---|",
        f"| expert | {whole:.2f} | 1.000 |",
    ]
    for steps, seconds in sorted(gates.items()):
        spent = statistics.fmean(seconds)
        lines.append(f"| gates, {steps} steps | {spent:.2f} | {spent / whole:.3f} |")
    return "\n".join(lines) + "\n"


def document(size: str, suite_seed: int, experts: int, trials: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Put the table into one JSON document."""
    return {
        "schema": 1,
        "size": size,
        "suite_seed": suite_seed,
        "seeds": trials,
        "experts": experts,
        "methods": summary,
    }


def _spread(values: Sequence[float]) -> list[float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return [round(statistics.fmean(values), 2), round(deviation, 2)]


def _rank(name: str) -> tuple[int, str]:
    # Rows with another k or temperature follow their method.
    method = name.partition(" ")[0].rstrip(",")
    return (_ORDER.index(method) if method in _ORDER else len(_ORDER), name)
