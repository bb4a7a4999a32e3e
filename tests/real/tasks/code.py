"""Programs: what a function does and what it is called, and where a manual page stands."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from tests.real.packages import files_of
from tests.real.tasks.compressed import text_of
from tests.real.tasks.task import Row, Task, balanced

LIBRARIES = {"networkx": "networkx", "numpy": "numpy", "pandas": "pandas", "scikit-learn": "sklearn", "scipy": "scipy",
             "sympy": "sympy", "sqlalchemy": "sqlalchemy"}  # fmt: skip
"""Packages that the development environment has, by their names in it and in Python."""
MANUALS = ("manpages", "manpages-dev")
LENGTHS = range(15, 100)
"""Characters of a line that says something."""


class Described(NamedTuple):
    """A public function with the first paragraph of its docstring."""

    name: str
    line: str


def functions(source: str) -> Iterator[Described]:
    """Read what a module's public functions do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            line = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            # A name that stands in the line is no question.
            if len(line) in LENGTHS and node.name.casefold() not in line.casefold():
                yield Described(node.name, line)


@cache
def libraries() -> Mapping[str, tuple[Described, ...]]:
    """Read every library's functions."""
    found = {}
    for package, module in LIBRARIES.items():
        paths = sorted((files_of(package) / module).rglob("*.py"))
        texts = (path.read_text(encoding="utf-8") for path in paths if "tests" not in path.parts)
        found[module] = tuple(each for text in texts for each in functions(text))
    return found


def named(known: Mapping[str, Iterable[Described]]) -> Iterator[Row]:
    """Pair what a function does with its name."""
    for each in known.values():
        yield from (Row(function.line, (function.name,)) for function in each)


def libraries_of(known: Mapping[str, Iterable[Described]]) -> list[Row]:
    """Ask in which library a function is, where it does not say so and only one has such a line."""
    return balanced(
        (
            Row(function.line, (library,))
            for library, each in known.items()
            for function in each
            if library not in function.line.casefold()
        ),
        least=300,
    )


class Manual(NamedTuple):
    """The name and purpose of a manual page."""

    section: str
    names: tuple[str, ...]
    purpose: str


def manual(section: str, source: str) -> Manual | None:
    """Read a page's NAME section; None for one that only points at another page."""
    found = re.search(r"^\.SH \"?NAME\"?\n(.*?)(?=^\.S[Hh])", source, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\.\w+ ?|\\f.|\\&", "", found[1].replace("\\-", "-"), flags=re.MULTILINE) if found else ""
    parts = re.split(r"\s+(?:-+|\\\(em)\s+", " ".join(text.split()), maxsplit=1)
    if len(parts) != 2 or not parts[0].strip(" ,") or len(parts[1]) not in LENGTHS:
        return None
    return Manual(section, tuple(name.strip() for name in parts[0].split(",") if name.strip()), parts[1].strip())


@cache
def manuals() -> tuple[Manual, ...]:
    """Read the English manual."""
    paths = (path for package in MANUALS for path in sorted(files_of(package).rglob("*.gz")))
    pages = (manual(path.parent.name[3:4], text_of(path)) for path in paths)
    return tuple(page for page in pages if page)


def calls(known: Iterable[Manual]) -> Iterator[Row]:
    """Pair what a C function does with its names."""
    return (Row(page.purpose, page.names) for page in known if page.section in "23")


def tasks() -> list[Task]:
    """List the tasks that contributors have."""
    field, libs = "programming", tuple(LIBRARIES)
    return [
        Task("function-name", "skill", field, libs, "exact", lambda: named(libraries()),
             ("Doc: {}\nFunction name?", "Name a Python function: {}"), ("def what? {}",)),
        Task("library", "skill", field, libs, "choices", lambda: libraries_of(libraries()),
             ("Doc: {}\nLibrary?",), ("What must I import for this: {}",)),
        Task("c-function", "skill", field, MANUALS, "exact", lambda: calls(manuals()), ("C function: {}",)),
    ]  # fmt: skip
