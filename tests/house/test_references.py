"""What texts point at is there: verbs and flags in hints, docs and docstrings, and our own modules and names."""

import ast
import re
from functools import cache
from importlib import import_module

import click
import pytest
import typer

from tests.house.sources import ROOMS, ROOT, python_files

TEXTS = [
    *python_files(*ROOMS, "deploy", "tests"),
    *(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if path.name != "CHANGELOG.md"),
    *ROOT.glob("deploy/systemd/*"),
]
# In a sentence a program's name alone may stand before any word.
COMMAND = re.compile(
    r"(?:^ *|[:`\"'(] ?|[Rr]un )greylag-(client|coordinator|router)((?: [a-z][a-z-]*)*)([^\"'`|;&)\n]*)", re.MULTILINE
)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
NAME = re.compile(rf"`((?:{'|'.join((*ROOMS, 'tests'))})(?:\.\w+)+)`")
PATH = re.compile(rf"`((?:{'|'.join((*ROOMS, 'tests', 'deploy', 'docs'))})/[\w/.-]+)`")


@cache
def program(room: str) -> click.Command:
    return typer.main.get_command(import_module(f"{room}.cli.main").app)


def wrong_command(room: str, words: list[str], rest: str) -> str | None:
    """Say which word of a command line the program does not know."""
    command = program(room)
    while isinstance(command, click.Group) and words:
        if words[0] not in command.commands:
            return words[0] if not command.invoke_without_command else None
        command, words = command.commands[words[0]], words[1:]
    known = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
    if command.context_settings.get("ignore_unknown_options"):
        return None
    return next((flag for flag in FLAG.findall(rest) if flag not in known), None)


def is_there(name: str) -> bool:
    """Tell whether a dotted name is one of our modules, or is defined in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:length])
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if file.is_file():
            return defines(ast.parse(file.read_text()), parts[length:])
    return False


def defines(node: ast.AST, names: list[str]) -> bool:
    if not names:
        return True
    for inner in ast.iter_child_nodes(node):
        targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
        own = getattr(inner, "name", None)
        if names[0] == own or any(isinstance(each, ast.Name) and each.id == names[0] for each in targets):
            return defines(inner, names[1:])
    return False


def faults(text: str) -> list[str]:
    found = [
        f"{wrong} in {match[0]!r}"
        for match in COMMAND.finditer(text)
        if (wrong := wrong_command(match[1], match[2].split(), match[3]))
    ]
    found += [name for name in NAME.findall(text) if not is_there(name)]
    return found + [name for name in PATH.findall(text) if not (ROOT / name).exists()]


def test_texts_point_at_what_is_there() -> None:
    found = {path.relative_to(ROOT): faults(path.read_text()) for path in TEXTS}
    assert {path: each for path, each in found.items() if each} == {}


@pytest.mark.parametrize(
    ("words", "rest", "wrong"),
    [
        (["ask"], " --explain TEXT", None),
        (["aks"], "", "aks"),
        (["ask"], " --explian TEXT", "--explian"),
        (["lm-eval"], " --tasks boolq", None),
        ([], "", None),
    ],
)
def test_a_wrong_word_is_found(words: list[str], rest: str, wrong: str | None) -> None:
    assert wrong_command("router", words, rest) == wrong


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("router.pool.gate", True),
        ("router.layer.choice.Choice.experts", True),
        ("router.pool.calibration.MAX_BIAS", True),
        ("router.pool.gate.Chioce", False),
        ("router.gaet", False),
    ],
)
def test_a_wrong_name_is_found(name: str, *, there: bool) -> None:
    assert is_there(name) == there
