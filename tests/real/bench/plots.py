"""Plots of a trial: how estimated shares go with true ones, and how far each method comes."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

from tests.real.bench import table
from tests.real.bench.findings import Findings
from tests.real.bench.growth import growth
from tests.real.bench.shares import Told
from tests.real.bench.suite import Suite

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(suite: Suite, found: Findings, folder: Path) -> None:
    """Draw all there is into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _draw_shares(suite, found.told, folder / "shares.png")
    if grown := growth(suite.known, suite.questions, found.by_name):
        _draw_growth(grown, folder / "growth.png")
    for half in table.HALVES:
        _draw_methods(table.summary(table.tabulate(found.scored, suite.questions, half)), half, folder / f"{half}.png")


def _draw_shares(suite: Suite, told: Mapping[str, Told], path: Path) -> None:
    """Draw each row of each mixture: the true share of its first expert's task, and the estimated one."""
    figure, axis = plt.subplots(figsize=(5.5, 5), layout="constrained")
    for question in suite.questions:
        if question.family == "mixture":
            for own, true in question.own.items():
                values = told[question.name].estimated[own]
                axis.plot([true] * len(values), values, ".", color="tab:blue", alpha=0.3)
                axis.plot(true, sum(values) / len(values), "o", color="tab:red")
    axis.plot((0, 1), (0, 1), color="black", linewidth=0.8)
    axis.set(xlabel="true share of the request", ylabel="estimated share (red: mean)", xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_growth(grown: Mapping[str, Mapping[str, table.Interval]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    sizes = list(dict.fromkeys(size for row in grown.values() for size in row))
    for name, row in grown.items():
        axis.plot([sizes.index(size) for size in row], [mean for mean, _, _ in row.values()], "o-", label=name)
    axis.set_xticks(range(len(sizes)), sizes)
    axis.set(xlabel="experts in the pool", ylabel="points on the first contributors' questions")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_methods(found: Mapping[str, Mapping[str, table.Interval]], half: str, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 0.3 * len(found) + 1.2), layout="constrained")
    for at, row in enumerate(found.values()):
        mean, low, high = row["all"]
        axis.errorbar(mean, at, xerr=[[mean - low], [high - mean]], fmt="o", color="tab:blue", capsize=2)
    axis.set_yticks(range(len(found)), list(found), fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(f"points on the {half} half; lines: 95 of 100 redrawn tables")
    figure.savefig(path, dpi=120)
    plt.close(figure)
