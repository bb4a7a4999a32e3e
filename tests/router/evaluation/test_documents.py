"""What the documents tell people to type is what the programs take."""

import re
import shlex
from pathlib import Path
from typing import get_args

import click
import pytest
import typer

from router.cli.evaluate import MetricFlag
from router.cli.main import app
from router.evaluation.metrics import METRICS
from router.evaluation.rows import read_rows
from tests.house.sources import ROOT

PAGES = [ROOT / "docs" / "evaluation.md", ROOT / "docs" / "recipes" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced(page: Path, language: str) -> list[str]:
    return [line for kind, text in FENCE.findall(page.read_text()) if kind == language for line in text.splitlines()]


def test_rows_are_as_the_page_shows_them() -> None:
    tasks = read_rows(fenced(PAGES[0], "json"), name="x")
    assert [(task.name, task.ranked) for task in tasks] == [("mood", True), ("rivers", False)]


@pytest.mark.parametrize("line", [line for page in PAGES for line in fenced(page, "")])
def test_commands_are_those_of_the_program(line: str) -> None:
    program, verb, *words = shlex.split(line)
    assert program == "greylag-router"
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    context = group.commands[verb].make_context(verb, words)
    recipe = context.params.get("recipe")
    assert recipe is None or (ROOT / recipe).is_file()


def test_the_flag_offers_every_metric() -> None:
    assert get_args(get_args(MetricFlag)[0]) == tuple(METRICS)
