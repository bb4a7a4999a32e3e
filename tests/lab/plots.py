"""Plots of the table: methods by family, and how they go with pool size, k and the steps of gate training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

from tests.lab.contenders import DEFAULT_K
from tests.lab.routes import Traced
from tests.lab.table import COLUMNS

mpl.use("Agg")
from matplotlib import pyplot as plt

Cell = Sequence[float]
"""Mean and standard deviation, in percent."""
Summary = Mapping[str, Mapping[str, Cell]]
"""As `table.summarise` gives it."""
_STYLES = [{"marker": marker, "linestyle": line} for line in ("-", "--") for marker in "osD^vP*X"]


@dataclass(frozen=True)
class Drawn:
    """What there is to draw."""

    title: str
    summary: Summary
    by_pool: Mapping[int, Summary]
    by_steps: Mapping[int, Summary]
    traced: Mapping[str, Traced]


def draw(drawn: Drawn, folder: Path) -> None:
    """Draw all there is into a folder."""
    draw_families(drawn.summary, drawn.title, folder / "families.png")
    if by_k := over_k(drawn.summary, DEFAULT_K):
        draw_lines(by_k, "experts a token, k", drawn.title, folder / "k.png")
    if len(drawn.by_pool) > 1:
        draw_lines(over(drawn.by_pool), "experts in the pool", drawn.title, folder / "pools.png")
    if len(drawn.by_steps) > 1:
        draw_lines(over(drawn.by_steps), "steps of gate training", drawn.title, folder / "gate-steps.png")
    if drawn.traced:
        points = {name: traced.points for name, traced in drawn.traced.items()}
        draw_divergences(points, drawn.title, folder / "oracle.png")


def draw_families(summary: Summary, title: str, path: Path) -> None:
    """Draw one panel of bars a family, one bar a row of the table at its own k."""
    rows = {name: row for name, row in summary.items() if " k=" not in name}
    figure, axes = plt.subplots(
        1, len(COLUMNS), figsize=(2.2 * len(COLUMNS) + 2, 0.28 * len(rows) + 1.4), sharey=True, layout="constrained"
    )
    for axis, column in zip(axes, COLUMNS, strict=True):
        means, spreads = zip(*(row.get(column, (0.0, 0.0)) for row in rows.values()), strict=True)
        spread = {"xerr": spreads, "ecolor": "black", "capsize": 2} if any(spreads) else {}  # one seed has none
        axis.barh(range(len(rows)), means, color="tab:blue", **spread)
        axis.set_title(column, fontsize=10)
        axis.set_xlim(0, 100)
        axis.set_xticks((0, 25, 50, 75, 100), ("0", "", "50", "", "100"))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("exact match, percent; lines: standard deviation over seeds", fontsize=9)
    _save(figure, path)


def draw_lines(lines: Mapping[str, Mapping[int, Cell]], across: str, title: str, path: Path) -> None:
    """Draw what becomes of rows of the table as one number grows.

    Args:
        lines: By row of the table and number.
        across: What the number is.
        title: Of the plot.
        path: PNG file to write.
    """
    figure, axis = plt.subplots(figsize=(8.5, 5), layout="constrained")
    for at, (name, line) in enumerate(lines.items()):
        means, spreads = zip(*line.values(), strict=True)
        style = _STYLES[at % len(_STYLES)]
        bars = spreads if any(spreads) else None
        axis.errorbar(list(line), means, yerr=bars, label=name, capsize=2, linewidth=1.2, markersize=4, **style)
    axis.set_xticks(sorted({number for line in lines.values() for number in line}))
    axis.set_xlabel(across)
    axis.set_ylabel("exact match on held-out tasks, percent")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    _save(figure, path)


def over(numbers: Mapping[int, Summary]) -> dict[str, dict[int, Cell]]:
    """Follow each row that all tables have."""
    names = [name for name in next(iter(numbers.values())) if all(name in summary for summary in numbers.values())]
    return {name: {number: numbers[number][name]["all"] for number in sorted(numbers)} for name in names}


def over_k(summary: Summary, default: int) -> dict[str, dict[int, Cell]]:
    """Follow each method that was asked with several k."""
    found: dict[str, dict[int, Cell]] = {}
    for name, row in summary.items():
        method, _, k = name.partition(" k=")
        if k:
            found.setdefault(method, {})[int(k)] = row["all"]
    for method in found.keys() & summary.keys():
        found[method][default] = summary[method]["all"]
    return {method: dict(sorted(line.items())) for method, line in found.items()}


def draw_divergences(points: Mapping[str, Sequence[tuple[float, float]]], title: str, path: Path) -> None:
    """Draw each task as a point: how far routing is from the oracle's, and how well it does (Figure 4's question).

    Args:
        points: By method, KL(oracle || routing) in nats and exact match in percent.
        title: Of the plot.
        path: PNG file to write.
    """
    figure, axis = plt.subplots(figsize=(8.5, 5), layout="constrained")
    for at, (name, pairs) in enumerate(points.items()):
        axis.plot(*zip(*pairs, strict=True), _STYLES[at]["marker"], label=name, markersize=5, alpha=0.6)
    axis.set_xlabel("KL(oracle || routing) of a task, nats")
    axis.set_ylabel("exact match, percent")
    axis.grid(alpha=0.3)
    axis.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
