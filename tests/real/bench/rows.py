"""Rows of the table: which methods are asked, what they are held against, and the controls."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from router.query.request import RoutingChoice
from tests.lab.contenders import Bundles, contenders
from tests.real.bench.contributors import Contributor
from tests.real.bench.oracle import alone
from tests.real.bench.questions import SHOTS
from tests.real.bench.score import Asked

METHODS = (
    "base", "parameter-average", "merged", "uniform", "arrow", "spectr", "lag", "average-activation", "retrieval",
    "phatgoose", "nnls-request", "nnls-cautious", "nnls-token", "nnls-gates",
)  # fmt: skip
KS = (1, 3, 4)
"""Beside the release's 2."""
_BY_K = ("phatgoose", "nnls-token")
MULTITASK: Literal["multitask"] = "multitask"
FEW_SHOTS = f"base, {SHOTS} shots"
CONTROLS: dict[str, tuple[str, Bundles]] = {
    "random experts, phatgoose": ("phatgoose", "random"),
    "random experts, nnls-request": ("nnls-request", "random"),
    "shuffled gates, phatgoose": ("phatgoose", "shuffled-gates"),
    "random gates, phatgoose": ("phatgoose", "random-gates"),
    "shuffled means, nnls-request": ("nnls-request", "shuffled-means"),
    "random experts, nnls-cautious": ("nnls-cautious", "random"),
    "shuffled means, nnls-cautious": ("nnls-cautious", "shuffled-means"),
}
"""A method, and which form of the experts it is asked of (`tests.real.bench.controls`)."""


def rows(wanted: Sequence[str] = ()) -> list[Asked]:
    """List the rows of the table but experts alone: those that are wanted beside the base; empty for all."""
    listed = [Asked(row.name, row.choice) for row in contenders([], 1, METHODS) if row.name in METHODS]
    listed += [Asked(f"{name} k={k}", RoutingChoice(name, k=k)) for name in _BY_K for k in KS]
    listed += [
        Asked(FEW_SHOTS, RoutingChoice("base"), shots=SHOTS),
        *(Asked(name, RoutingChoice(method), form) for name, (method, form) in CONTROLS.items()),
        Asked(MULTITASK, RoutingChoice(f"expert:{MULTITASK}"), MULTITASK),
    ]
    return [row for row in listed if not wanted or row.name in ("base", *wanted)]


def own_tasks(known: Sequence[Contributor]) -> list[Asked]:
    """Ask every expert alone its own task."""
    return [replace(alone(each.name), only=(each.task,)) for each in known]
