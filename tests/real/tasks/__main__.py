"""`python -m tests.real.tasks`: every task, with how many rows it has and one of them, shortened.

The rows are the packages' own: the table is to be looked at, and kept to oneself.
"""

import argparse
import sys
from collections.abc import Sequence

from protocol.errors import Refused
from tests.real.tasks import every, rows, split
from tests.real.tasks.task import Part, Task, majority

ENOUGH = 300
"""Rows that make a task fit to be a contributor's data."""
SHOWN = 60
"""Characters of an example."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, family by family."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.tasks", description=__doc__)
    parser.add_argument("--family", nargs="+", metavar="NAME", help="only these families")
    parser.add_argument("--examples", type=int, default=1, metavar="N", help="rows to show of each task")
    parser.add_argument("--width", type=int, default=SHOWN, metavar="N", help="characters of a row's input to show")
    options = parser.parse_args(arguments)
    fit, lacking = 0, 0
    for task in every().values():
        if options.family and task.family not in options.family:
            continue
        try:
            shown, enough = describe(task, options.examples, options.width)
        except Refused as refusal:
            lacking += 1
            shown, enough = f"{task.name} | {task.family} | {refusal.message}", False
        fit += enough
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()
    sys.stderr.write(f"{fit} tasks are fit for contributors; of {lacking} the packages are missing.\n")


def describe(task: Task, examples: int, width: int) -> tuple[str, bool]:
    """Write the line of one task, and tell whether it is fit for contributors.

    Raises:
        Refused: As `rows`.
    """
    part: Part = split().get(task.name, "train")
    found, count = rows(task, part, seed=0), len(task.rows)
    contributed = task.name not in split()
    classes = len(found[0].choices) if found and found[0].choices else 0
    common = f", {classes} choices, commonest {majority(found):.0%}" if found and task.metric == "choices" else ""
    fields = [
        task.name, task.family, task.field, f"{task.metric}{common}", f"{count} rows, {len(found)} {part}",
        " ".join(task.sources), "; ".join(task.licences),
    ]  # fmt: skip
    for row in found[:examples]:
        target = " / ".join(row.targets[:3])
        fields.append(f"{_short(row.input, width)} -> {_short(target, width)}")
    warned = [" FEW"] if count < ENOUGH and contributed else []
    return " | ".join([*fields, *warned]), contributed and count >= ENOUGH


def _short(text: str, width: int) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= width else f"{line[: width // 2]}…{line[-(width // 2) :]}"


if __name__ == "__main__":
    main()
