"""How far routing is from the oracle's, and whether that matters (arXiv 2402.05859, section 4.4).

By the router's own figures: `router.query.attribution` defines them, and `greylag-router trace` gives them for a real
release.
"""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.model.routed_model import RoutedModel
from router.query.attribution import correlation, oracle_divergence, panels_by_task
from router.query.heatmap import save_png
from router.query.request import RoutingChoice, TaskInput
from tests.lab.evaluate import Scores
from tests.lab.world import FAMILIES, Row, Task

METHODS = ("phatgoose", "average-activation", "arrow")
"""What chooses token by token."""
INPUTS = 6
"""Rows of a task that are looked at."""
LONGEST = 14
"""Tokens of an answer, two segments of five, at most, and one too many each."""


@dataclass(frozen=True)
class Traced:
    """What one method's routing looks like beside the oracle's."""

    points: list[tuple[float, float]]
    """KL(oracle || routing) in nats and exact match in percent, by held-out task."""
    correlation: float | None


def best_experts(scores: Scores, tasks: Sequence[Task]) -> dict[str, str]:
    """Say whom the oracle takes for each task; it is the first of equals. Nobody if no expert was asked alone."""
    singles = {name: row for name, row in scores.exact.items() if name.startswith("expert:")}
    if not singles:
        return {}
    return {
        task.name: max(singles, key=lambda name: singles[name][task.name]).removeprefix("expert:") for task in tasks
    }


def trace(
    model: RoutedModel, rows: Mapping[str, Sequence[Row]], tasks: Sequence[Task], scores: Scores, folder: Path
) -> dict[str, Traced]:
    """Compare routing with the oracle's, and draw which expert served which module in one task of each family.

    Args:
        model: With its experts.
        rows: Test rows by task.
        tasks: Held-out tasks.
        scores: Of the methods and of each expert alone.
        folder: Where the heat maps go.

    Returns:
        By method; nothing if no expert was asked alone, so that there is no oracle.
    """
    oracles = best_experts(scores, tasks)
    if not oracles:
        return {}
    asked = {
        method: [
            TaskInput(task.name, row["input"], oracles[task.name], scores.exact[method][task.name])
            for task in tasks
            for row in rows[task.name][:INPUTS]
        ]
        for method in METHODS
        if method in scores.exact
    }
    drawn = {next(task.name for task in tasks if task.family == family) for family in FAMILIES}
    return beside_oracle(model, asked, drawn, folder, LONGEST)


def beside_oracle(
    model: RoutedModel, asked: Mapping[str, Sequence[TaskInput]], drawn: Collection[str], folder: Path, longest: int
) -> dict[str, Traced]:
    """Compare routing with the oracle's by method.

    Args:
        model: With its experts; it is asked to write.
        asked: By method, requests with the task's oracle, and its score from 0 to 1.
        drawn: Tasks that get a panel of the method's heat map.
        folder: Where the heat maps go.
        longest: Tokens of an answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for method, inputs in asked.items():
        choice = RoutingChoice(method)
        answered = model.answer([each.input for each in inputs], choice, max_new_tokens=longest, full=True)
        panels = panels_by_task(inputs, answered)
        experts = len(answered.experts)
        points = [(oracle_divergence(panel, experts), 100 * (panel.score or 0.0)) for panel in panels]
        found[method] = Traced([(x, y) for x, y in points if x is not None], correlation(panels, experts))
        save_png([panel for panel in panels if panel.title in drawn], answered.experts, folder / f"{method}.png")
    return found


def markdown(traced: Mapping[str, Traced]) -> str:
    """Write the mean distance from the oracle's routing, and how it goes with exact match over held-out tasks."""
    lines = ["| method | KL(oracle \\|\\| routing), nats | correlation with exact match |", "|---|---|---|"]
    for method, each in traced.items():
        distance = statistics.fmean(x for x, _ in each.points)
        together = "none" if each.correlation is None else f"{each.correlation:.2f}"
        lines.append(f"| {method} | {distance:.2f} | {together} |")
    return "\n".join(lines) + "\n"
