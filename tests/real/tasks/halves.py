"""The rule by which tasks and languages tune or confirm, decided before any score; it made `tests/real/split.toml`.

    python -m tests.real.tasks.halves > tests/real/split.toml

Within a family, the tasks that nobody trains on stand in alphabetical order and take turns, tuning first. A cell of the
grid goes with its language, and languages take turns likewise. Of every register, the cells of each fifth language are
held out, each register beginning at the language after the one at which the register before it began: so every language
but those whose cell is lacking has one, and its row and column are covered by cells that contributors train on.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable

from tests.real.tasks import every
from tests.real.tasks.documents import LANGUAGES, REGISTERS
from tests.real.tasks.task import Task


def held_out_cell(language: str, register: str) -> bool:
    """Tell whether nobody trains on a cell."""
    return (LANGUAGES.index(language) - REGISTERS.index(register)) % len(REGISTERS) == 0


def halves(tasks: Iterable[Task]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Divide what nobody trains on, family by family, into what tunes and what confirms."""
    families: dict[str, list[str]] = defaultdict(list)
    tuning: dict[str, list[str]] = defaultdict(list)
    confirming: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        if task.family == "cell":
            language, register = task.name.split("/")
            if held_out_cell(language, register):
                (confirming if LANGUAGES.index(language) % 2 else tuning)["cell"].append(task.name)
        elif task.family != "skill":
            families[task.family].append(task.name)
    for family, names in families.items():
        tuning[family], confirming[family] = sorted(names)[::2], sorted(names)[1::2]
    return tuning, confirming


def text(tasks: Iterable[Task]) -> str:
    """Write the split as it stands in the repository."""
    lines = ["# What nobody trains on: one half tunes, one confirms. The rule stands in tests/real/tasks/halves.py."]
    for half, families in zip(("tuning", "confirming"), halves(tasks), strict=True):
        lines += ["", f"[{half}]"]
        for family, names in sorted(families.items()):
            lines += [f"{family} = [", *(f'    "{name}",' for name in sorted(names)), "]"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text(every().values()))
