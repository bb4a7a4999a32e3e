"""The rows of the table: which methods are asked, and how. All but what a row says here is the same for all.

Oracle and Best Individual are chosen among the rows `expert:NAME` afterwards (`tests.lab.table`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from router.methods import METHODS
from router.query.request import RoutingChoice

Bundles = Literal[
    "experts", "written-means", "random", "random-gates", "shuffled-gates", "shuffled-means", "joint", "multitask",
    "multitask-wide", "capped", "fresh-lora",
]  # fmt: skip
"""What a row runs on: the experts' bundles, the same with the paper's form of means, with something taken away
(`tests.real.bench.controls`) or with a release's cap, or baselines beside them: experts whose gates were trained
together with them, one expert for everybody's rows, as wide as an expert or `WIDER` times as wide, and one for each
question, of public rows (`tests.real.bench.fresh`)."""
WIDER = 4
KS = (1, 2, 3, 4)
DEFAULT_K = 2
_COUNTING = (
    "phatgoose", "average-activation", "arrow", "spectr", "nnls-request", "nnls-cautious", "nnls-token", "nnls-gates",
)  # fmt: skip
"""Methods that k means something to."""


@dataclass(frozen=True)
class Contender:
    """One row."""

    name: str
    choice: RoutingChoice
    bundles: Bundles = "experts"


def contenders(experts: Sequence[str], width: int, wanted: Sequence[str] = ()) -> list[Contender]:
    """List the rows of the table.

    Args:
        experts: Names; each alone is a row, too.
        width: The base model's d, for the temperature that the paper's code gives Arrow.
        wanted: Only these; empty for all. A method's name stands for all its k.
    """
    # genknowsub, left out with the others, needs experts that somebody calls general; no suite has any.
    named = [name for name in METHODS if ":" not in name]
    rows = [Contender(name, RoutingChoice(name)) for name in named]
    rows += [
        Contender("arrow T=10sqrt(d)", RoutingChoice("arrow", temperature=10 * width**0.5)),
        Contender("nnls-fixed:1.5", RoutingChoice("nnls-fixed:1.5", k=KS[-1])),
        Contender("average-activation, written means", RoutingChoice("average-activation"), "written-means"),
        Contender("phatgoose, capped", RoutingChoice("phatgoose"), "capped"),
        Contender("nnls-request, capped", RoutingChoice("nnls-request"), "capped"),
        Contender("joint", RoutingChoice("phatgoose"), "joint"),
        Contender("multitask", RoutingChoice("expert:multitask"), "multitask"),
        Contender(f"multitask r x {WIDER}", RoutingChoice("expert:multitask-wide"), "multitask-wide"),
    ]
    rows += [
        Contender(f"{name} k={k}", RoutingChoice(name, k=k))
        for name in _COUNTING
        if name in named
        for k in KS
        if k != DEFAULT_K
    ]
    rows = [row for row in rows if not wanted or row.name in wanted or row.choice.method in wanted]
    if not wanted or {"oracle", "best-individual"} & set(wanted):
        rows += [Contender(f"expert:{name}", RoutingChoice(f"expert:{name}")) for name in experts]
    return rows


def among(rows: Sequence[Contender], experts: Sequence[str]) -> list[Contender]:
    """Ask the same rows of a part of the pool; one expert for everybody's rows has no part."""
    named = [f"expert:{name}" for name in experts]
    return [
        replace(row, choice=replace(row.choice, allow=tuple(experts)))
        for row in rows
        if row.choice.method in named or not (row.choice.method or "").startswith("expert:")
    ]
