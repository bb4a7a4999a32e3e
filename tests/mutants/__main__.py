"""`make mutants`: plants one fault at a time in a copy of the house and sees that the matching tests fail.

mutants.toml lists them, and conformance.toml those that cases of the conformance suite must notice: a file, a piece of
a line that stands there once, what is put in its place, and the tests that are to notice. mutmut and cosmic-ray mutate
by operators, thousands at a time, most of them of no matter; these are the faults that a careless hand would make, each
of which would break a promise.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[2]
TABLES = ("mutants", "conformance")
COPIED = ("client", "coordinator", "deploy", "protocol", "router", "tests", "docs")
TIMEOUT_S = 300
SUITE = "tests/conformance/test_conformance.py::test_every_call_is_answered_as_it_must_be"


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def plant(self, folder: Path) -> None:
        """Write the fault into a copy of the house.

        Raises:
            ValueError: What it replaces does not stand there exactly once.
        """
        path = folder / self.file
        text = (ROOT / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {text.count(self.old)} times, not once: {self.old}")
        path.write_text(text.replace(self.old, self.new))

    def remove(self, folder: Path) -> None:
        """Put the file back as it is."""
        (folder / self.file).write_text((ROOT / self.file).read_text())


def read_list(path: Path) -> list[Mutant]:
    """Read the list of faults."""
    return [
        Mutant(
            entry["file"], entry["old"], entry["new"], tuple(entry.get("tests", ())) + _played(entry.get("cases", ()))
        )
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]


def _played(subjects: Iterable[str]) -> tuple[str, ...]:
    """Name the tests that play the conformance suite's cases of some subjects."""
    return tuple(f"{SUITE}[{subject}]" for subject in subjects)


def passes(folder: Path, tests: tuple[str, ...]) -> bool:
    """Tell whether tests pass in a copy of the house; what takes too long does not."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def copy_house(folder: Path) -> Path:
    """Copy what tests need."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.toml"), *ROOT.glob("*.md")):
        shutil.copy(path, folder)
    return folder


def table(mutants: Iterable[Mutant], caught: Iterable[bool]) -> str:
    """Write down for people how many faults each file had, and how many of them were noticed."""
    planted, noticed = Counter[str](), Counter[str]()
    for mutant, was in zip(mutants, caught, strict=True):
        planted[mutant.file] += 1
        noticed[mutant.file] += was
    rows = [f"| {file} | {count} | {noticed[file]} |" for file, count in sorted(planted.items())]
    return "\n".join(["| file | faults | caught |", "|---|---|---|", *rows, ""]) + "\n"


def main() -> None:
    """Run the list, and print what was caught and what was not: a table by file, and one JSON document."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at a time")
    parser.add_argument("--only", default="", help="a part of a file's name")
    parser.add_argument("--table", choices=TABLES, help="one of the tables; default: both")
    given = parser.parse_args()
    tables = [given.table] if given.table else TABLES
    lists = [read_list(Path(__file__).with_name(f"{table}.toml")) for table in tables]
    mutants = [each for listed in lists for each in listed if given.only in each.file]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(given.jobs) as pool:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(given.jobs):
            free.put(copy_house(Path(scratch) / str(number)))

        def healthy(tests: tuple[str, ...]) -> bool:
            folder = free.get()
            try:
                return passes(folder, tests)
            finally:
                free.put(folder)

        def caught(mutant: Mutant) -> bool:
            folder = free.get()
            try:
                mutant.plant(folder)
                found = not passes(folder, mutant.tests)
                sys.stderr.write(f"{'caught  ' if found else 'SURVIVED'} {mutant.file}: {mutant.new.strip()}\n")
                return found
            finally:
                mutant.remove(folder)
                free.put(folder)

        suites = sorted({mutant.tests for mutant in mutants})
        sick = [tests for tests, well in zip(suites, pool.map(healthy, suites), strict=True) if not well]
        if sick:
            sys.exit(f"These tests fail without any fault: {sick}")
        found = list(pool.map(caught, mutants))
    sys.stdout.write(table(mutants, found))
    survivors = [f"{each.file}: {each.new}" for each, was in zip(mutants, found, strict=True) if not was]
    document = {"schema": 1, "mutants": len(mutants), "caught": sum(found), "survivors": survivors}
    sys.stdout.write(json.dumps(document) + "\n")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
