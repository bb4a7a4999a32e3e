"""Size budgets and words that have no place here."""

import ast
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from tests.house.sources import ROOMS, ROOT, python_files

FILE_LINES, FILE_MEDIAN, FUNCTION_LINES, PARAMETERS, FILES = 400, 150, 60, 7, 14
FORBIDDEN_NAMES = {"common", "utils", "helpers", "core", "manager", "misc", "base_utils"}
# The words are put together here so that this file does not hold them.
FORBIDDEN_TEXT = re.compile("|".join([r"\bimport " + "pickle", r"torch\." + r"load\(", "TO" + "DO", "FIX" + "ME"]))
SOURCES = python_files(*ROOMS, "deploy")


def test_files_are_small() -> None:
    lengths = {path.relative_to(ROOT): path.read_text().count("\n") for path in [*SOURCES, *python_files("tests")]}
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES} == {}
    assert statistics.median(lengths.values()) <= FILE_MEDIAN


def test_packages_are_small() -> None:
    files = Counter(path.parent.relative_to(ROOT) for path in python_files(*ROOMS) if path.name != "__init__.py")
    del files[Path("router/methods")]  # where a method is a file
    assert {folder: number for folder, number in files.items() if number > FILES} == {}


def test_every_package_says_what_it_holds() -> None:
    folders = {path.parent for path in python_files(*ROOMS)} - {ROOT / "coordinator/registry/migrations"}
    assert [
        folder for folder in folders if not ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    ] == []


def test_functions_are_small() -> None:
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                positional = [argument for argument in node.args.args if argument.arg not in ("self", "cls")]
                # A verb has as many parameters as flags, which Typer passes by name; a kernel knows nothing else.
                decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
                exempt = "command" in decorators or decorators == "triton.jit"
                if lines > FUNCTION_LINES or (len(positional) > PARAMETERS and not exempt):
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert long == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_that_have_no_place(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    assert FORBIDDEN_TEXT.search(path.read_text()) is None


def test_nothing_names_the_place_where_it_was_written() -> None:
    places = re.compile("/(?:wo" + "rk|fa" + "rm)/|/ro" + "ot/|/tm" + "p/")
    texts = [*SOURCES, *python_files("tests"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Makefile"]
    assert [str(path) for path in texts if places.search(path.read_text())] == []
