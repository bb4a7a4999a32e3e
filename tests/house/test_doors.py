"""The programs answer --help without waking the heavy libraries, and all speak alike."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from protocol.errors import Code

HEAVY = ("torch", "transformers", "peft", "datasets", "sqlalchemy", "grpc", "pydantic", "numpy")


@pytest.mark.parametrize("room", ["client", "coordinator", "router"])
def test_a_door_opens_quickly(room: str) -> None:
    program = f"import sys, {room}.cli.main; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == []


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Walk over the verbs of a program, each with the words that call it."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*path, name))
    else:
        yield path, command


@pytest.mark.parametrize("room", ["client", "coordinator", "router"])
def test_every_verb_explains_itself_and_ends_with_an_example(room: str) -> None:
    app: typer.Typer = import_module(f"{room}.cli.main").app
    found = list(verbs(typer.main.get_command(app)))
    assert len(found) >= 5
    for path, command in found:
        shown = CliRunner().invoke(app, [*path, "-h"])
        assert shown.exit_code == 0, path
        assert "completion" not in shown.output
        first, *_, example = (command.help or "").strip().split("\n\n")
        assert first.endswith(".")
        assert example.startswith(" ".join(("Example:", f"greylag-{room}", *path))), path
        words = shlex.split(example.removeprefix("Example: "))[1 + len(path) :]
        command.make_context("", words)  # raises if the example is not a command line of the verb
        for parameter in command.params:
            if isinstance(parameter, click.Option) and "--help" not in parameter.opts:
                assert (parameter.help or "").endswith("."), (path, parameter.name)


@pytest.mark.parametrize("room", ["client", "coordinator", "router"])
def test_a_program_explains_itself(room: str) -> None:
    program = f"from {room}.cli.main import main; main()"
    top = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True, timeout=60,
        env={"COLUMNS": "200", "NO_COLOR": "1", "PATH": ""},
    )  # fmt: skip
    assert top.stderr == ""
    assert "Usage" in top.stdout


@pytest.mark.parametrize(
    ("room", "verb"), [("client", "status"), ("coordinator", "serve"), ("router", "ask something")]
)
def test_a_refusal_reads_the_same_everywhere(room: str, verb: str, tmp_path: Path) -> None:
    program = f"from {room}.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, *verb.split(), "-w", tmp_path],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == Code.WORKSPACE_MISSING.fate.exit
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert re.fullmatch(r"error: .*\. \[WORKSPACE_MISSING\]", error)
    assert re.fullmatch(r"hint: .*", hint)


@pytest.mark.parametrize("room", ["client", "coordinator", "router"])
def test_grpc_keeps_its_log_to_itself(room: str) -> None:
    program = (
        f"import os, sys; from {room}.cli.main import main; sys.argv = ['x', '-h']\n"
        "try: main()\nexcept SystemExit: pass\nsys.stderr.write(os.environ['GRPC_VERBOSITY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert result.stderr == "NONE"


@pytest.mark.parametrize("room", ["client", "coordinator", "router"])
def test_an_unknown_flag_is_a_usage_error(room: str) -> None:
    program = f"from {room}.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", program, "--nonsense"], capture_output=True, text=True, timeout=60)  # noqa: PLW1510 - it is to fail
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
