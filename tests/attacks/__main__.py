"""Plays every attack against a copy of the honest pool: `make attacks`.

    python -m tests.attacks

Progress and a table on stderr; the last line of stdout is one JSON object. Attacks whose defence is known must be met:
else the exit status is 1.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from deploy.demo.processes import perform
from tests.attacks import cases
from tests.attacks.arena import Arena, Attempt, Knowledge, arena
from tests.attacks.by_means import means_pool
from tests.attacks.honest import honest_pool
from tests.attacks.measure import Measure, Served

MARGIN = 0.02
"""By how much accuracy on honest requests may fall at an attack that was met."""
ALONE, MANY = "sybil_alone", "sybils_"
"""How the attack by one key begins, and those by many, which may not take more than it does ..."""
SLACK = 0.02
"""... but for so much of all weight, since shares are capped on other text than what is asked."""
WORST = ("released", "quarantined", "refused")
"""What may become of an attacker's bundles, the worst first."""


def attacks() -> dict[str, ModuleType]:
    """All attacks by name."""
    return {each.name: import_module(f"{cases.__name__}.{each.name}") for each in iter_modules(cases.__path__)}


def play(folder: Path) -> dict[str, Any]:
    """Play all attacks below a folder, where the honest pools are kept; returns the report."""
    torch.set_num_threads(1)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    trained = honest_pool(folder)
    pools = {"gates": trained, "means": means_pool(folder / "means", trained)}
    rows, report = list[dict[str, Any]](), dict[str, Any]()
    for way, pool in pools.items():
        mine = [name for name, case in attacks().items() if getattr(case, "POOL", "gates") == way]
        honest, capped, found = against(Knowledge(pool), mine, folder / "arena", console)
        console.print(table(found, honest, way))
        rows += [{"pool": way, **row} for row in found]
        report[way] = {"honest": honest.accuracy, "capped": capped}
    return {"schema": 1, **report["gates"], "by_means": report["means"], "attackers": rows}


def against(
    known: Knowledge, names: Sequence[str], folder: Path, console: Console
) -> tuple[Served, float, list[dict[str, Any]]]:
    """Play some attacks against one pool; returns what it is worth without any, and capped, and what became of each."""
    measure, six, rows = Measure(known.honest), list(known.honest.bundles.values()), list[dict[str, Any]]()
    honest = measure.served(six)
    if honest is None:
        raise RuntimeError("the honest pool cannot be taken up")
    with arena(folder, known) as field:
        field.work()
        capped = measure.served(six, field.released()[1])
    for name in names:
        case = attacks()[name]
        with arena(folder, known) as field:
            case.attack(field)
            field.work()
            rows.append({"name": name, "defence": case.DEFENCE, **outcome(field, measure, honest)})
        told = f"{name}: {rows[-1]['outcome']} {rows[-1]['code']}".strip()
        console.print(f"{told}, {rows[-1]['accuracy']:.3f}", highlight=False)
    (alone,) = (row["taken"] for row in rows if row["name"].startswith(ALONE))
    for row in rows:
        if row["name"].startswith(MANY):
            row["met"] = row["met"] and row["taken"] <= alone + SLACK
    return honest, capped.accuracy if capped else 0.0, rows


def outcome(field: Arena, measure: Measure, honest: Served) -> dict[str, Any]:
    """Say what became of an attack, and what honest users get with the release and without any review."""
    (listed, cap), six = field.released(), list(field.known.honest.bundles.values())
    mine = {attempt.bundle.digest: attempt for attempt in field.attempts}
    ours = [bundle for bundle in six if bundle.digest in listed]
    after = measure.served([*ours, *(mine[digest].bundle for digest in listed if digest in mine)], cap)
    before = measure.served([*six, *(attempt.bundle for attempt in field.attempts)])
    accuracy = after.accuracy if after else 0.0
    states = Counter(attempt.state for attempt in field.attempts)
    return {
        "outcome": next((state for state in WORST if states[state]), "none"),
        "code": codes(field.attempts),
        "released": states["released"],
        "bundles": len(field.attempts),
        "accuracy": accuracy,
        "taken": after.taken if after else 1.0,
        "unreviewed": before.accuracy if before else None,
        "taken_unreviewed": before.taken if before else None,
        "met": accuracy >= honest.accuracy - MARGIN and len(ours) == len(six),
    }


def codes(attempts: Sequence[Attempt]) -> str:
    """Name what the attacker's bundles were met with, the most frequent first."""
    return ", ".join(code for code, _ in Counter(each.code for each in attempts if each.code).most_common())


def table(rows: Sequence[dict[str, Any]], honest: Served, way: str) -> Table:
    """Show the attacks beside one another."""
    shown = Table(title=f"Exact match on honest requests, by {way}; {honest.accuracy:.3f} without an attacker")
    for column in ("attack", "outcome", "released", "code", "accuracy", "taken", "unreviewed", "taken", "met"):
        shown.add_column(column)
    for row in rows:
        count = f"{row['released']} of {row['bundles']}"
        figures = (row["accuracy"], row["taken"], row["unreviewed"], row["taken_unreviewed"])
        cells = ("-" if figure is None else f"{figure:.3f}" for figure in figures)
        shown.add_row(row["name"], row["outcome"], count, row["code"], *cells, "yes" if row["met"] else "NO")
    return shown


def main() -> None:
    """Play all of it."""
    report = perform("attacks", play, resume=True)
    sys.stdout.write(json.dumps(report, allow_nan=False) + "\n")
    missed = [row["name"] for row in report["attackers"] if row["defence"] and not row["met"]]
    if missed:
        sys.exit(f"error: not met any more: {', '.join(missed)}")


if __name__ == "__main__":
    main()
