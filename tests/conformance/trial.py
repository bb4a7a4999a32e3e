"""A small pool for the suite: a real server over TLS on a free loopback port, with or without a worker."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from coordinator.workspace.create import BaseFacts, found
from coordinator.workspace.paths import CoordinatorWorkspace
from deploy.demo.processes import first_document, free_port, wait_until
from deploy.demo.world import marked
from protocol.adapters import Shape
from protocol.programs import end_child
from protocol.spec import BaseModelRef
from tests.house.sources import ROOT
from tests.protocol.serving import make_authority

BASE = ROOT / "deploy" / "demo" / "base"
POLICY = {"max_rank": 4, "statistics": ("centroid",)}
"""So that every code that a stranger can cause is caused."""
_PROBES = 48
_SETTINGS = {"GREYLAG_COORDINATOR_WORKER_INTERVAL_S": "0.2", "GREYLAG_COORDINATOR_HOURLY_KEYS": "1000"}


class Trial(NamedTuple):
    """Where a pool is reached, and where its processes count."""

    address: str
    ca: Path
    counters: list[str]

    @property
    def flags(self) -> list[str]:
        """What tells `conformance` of it."""
        return ["--address", self.address, "--ca", str(self.ca), *(f"--metrics={each}" for each in self.counters)]


def found_without_model(folder: Path) -> None:
    """Found a pool whose base nobody has: enough to take bundles in, not to judge them."""
    base = BaseModelRef(name="base", config="1" * 64, weights="2" * 64, tokenizer="3" * 64)
    modules = {"block.0.q": Shape(d_in=16, d_out=16), "block.0.v": Shape(d_in=16, d_out=24)}
    facts = BaseFacts("nowhere", base, "encoder-decoder", modules)
    place = CoordinatorWorkspace(folder)
    found(place, lambda: facts, name="trial", choices={"policy": POLICY}, settings={}, now=datetime.now(UTC))


def found_with_model(folder: Path) -> None:
    """Found a pool over the demo's base."""
    # Of words that the base knows: of unknown ones all are alike, and so is what all gates choose.
    probe = folder.with_name("probe.txt")
    folder.parent.mkdir(parents=True, exist_ok=True)
    probe.write_text("".join(f"{example.input}\n" for example in marked(_PROBES, 0)))
    flags = ["init", "--single", "--name", "trial", "--base", str(BASE), "--max-rank", "4", "--statistics", "centroid"]
    flags += ["--probe", str(probe), "-w", str(folder)]
    subprocess.run([*_program(), *flags], check=True, env=os.environ | _SETTINGS)


@contextmanager
def running(folder: Path, *, worker: bool, fleet: bool = True) -> Iterator[Trial]:
    """Serve a pool that was founded, for the length of a block."""
    authority = make_authority(folder / "tls")
    counters = [f"127.0.0.1:{free_port()}" for _ in range(1 + worker)]
    serve = ["serve", "--listen", "127.0.0.1:0", "--tls-cert", authority.certificate, "--tls-key", authority.key]
    serve += ["--json", "--metrics", counters[0], *(["--fleet", "fleet.example.org:7445"] if fleet else [])]
    with ExitStack() as stack:
        server = stack.enter_context(_process(folder, "serve", *map(str, serve)))
        address = first_document(server, folder / "serve.log")["address"]
        if worker:
            stack.enter_context(_process(folder, "worker", "worker", "--metrics", counters[1]))
        wait_until(lambda: all(map(_answers, counters)), 120, "The pool's processes do not start.")
        yield Trial(address, authority.ca, counters)


@contextmanager
def _process(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [*_program(), *arguments, "-w", str(folder)]
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | _SETTINGS
        )  # fmt: skip
    try:
        yield process
    finally:
        end_child(process)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"http://{address}/metrics", timeout=5).close()
    except OSError:
        return False
    return True


def _program() -> list[str]:
    return [sys.executable, "-m", "coordinator.cli.main"]
