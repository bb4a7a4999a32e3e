"""One coordinator on this machine and whoever talks to it, as real processes."""

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from typer.testing import CliRunner

from coordinator.cli.main import app
from deploy.demo.processes import first_document, free_port, program, running

RECIPE = ("--rank", "4", "--alpha", "4", "--expert-steps", "12", "--gate-steps", "4", "--batch-size", "8",
          "--eval-every", "4", "--learning-rate", "0.005")  # fmt: skip


def call(
    name: str, *arguments: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and keep what it said."""
    import os  # noqa: PLC0415 - only to extend the environment

    return subprocess.run(
        program(name, *arguments), capture_output=True, text=True, check=False, timeout=240,
        env=os.environ | (environment or {}), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def succeed(name: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Run a program that must succeed; return its stdout."""
    done = call(name, *arguments, environment=environment)
    assert done.returncode == 0, f"{name} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def coordinate(*arguments: object) -> str:
    """Run a verb of the coordinator in this process, which has imported all it needs; return its stdout."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        structlog.reset_defaults()  # the verb's log lines go to a stderr that ends with it
    assert done.exit_code == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Town:
    """Where everything is."""

    folder: Path
    base: Path
    port: int

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextmanager
    def serving(self, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """Keep `serve` running."""
        log = self.folder / "serve.log"
        arguments = ("serve", "-w", self.coordinator, "--listen", self.address, "--json")
        with running("coordinator", *arguments, log=log, environment=environment) as process:
            first_document(process, log)
            yield process

    def join(self, name: str, *, through: int | None = None) -> Path:
        """Make a contributor's workspace; `through` is a proxy's port."""
        place = self.folder / name
        address = f"127.0.0.1:{through or self.port}"
        succeed("client", "init", "-w", place, "--coordinator", address, "--base", self.base, "--name", name)
        return place

    def work(self) -> None:
        """Let the worker do what there is to do."""
        coordinate("worker", "-w", self.coordinator, "--once")

    def experts(self) -> list[dict[str, Any]]:
        """Rows of `experts ls`."""
        document = json.loads(coordinate("experts", "ls", "-w", self.coordinator, "--json"))
        assert document["schema"] == 1
        rows: list[dict[str, Any]] = document["experts"]
        return rows


def found(folder: Path, base: Path, *options: object) -> Town:
    """Found a pool over a base model."""
    town = Town(folder, base, free_port())
    coordinate("init", "--single", "-w", town.coordinator, "--name", "town", "--base", base, *RECIPE, *options)
    return town


def write_rows(path: Path, count: int = 48, marker: str = "") -> Path:
    """Write a small private file: reversed letters, each row led by `marker` if there is one."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    rows = []
    for number in range(count):
        word = [letters[(number * 7 + at * 3 + number // 26) % 26] for at in range(4)]
        rows.append({"input": f"{marker} reverse it : {' '.join(word)}".strip(), "target": " ".join(reversed(word))})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
