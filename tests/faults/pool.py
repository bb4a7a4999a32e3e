"""A small pool over TLS on this machine, whose processes are forks that can be killed."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from deploy.demo.processes import free_port
from tests.faults.children import Child, coordinate
from tests.protocol.serving import Authority, make_authority

Found = TypeVar("Found")
START_S = 60.0
"""How long a program may take to start, in seconds."""


@dataclass(frozen=True)
class Pool:
    """Where a pool is, and what its programs are started with."""

    folder: Path
    authority: Authority
    port: int
    settings: dict[str, str]

    @property
    def workspace(self) -> Path:
        return self.folder / "pool"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serve(self, **environment: str) -> Child:
        """Start `serve`; it prints a document when calls are taken."""
        tls = ("--tls-cert", self.authority.certificate, "--tls-key", self.authority.key)
        return self._start("serve", "--listen", self.address, *tls, "--json", **environment)

    def work(self) -> Child:
        """Start `worker`."""
        return self._start("worker")

    def verb(self, *words: str, seconds: float = 120.0) -> tuple[int | None, Child]:
        """Run a verb to its end, and return its status and what it was."""
        child = self._start(*words)
        child.ended(seconds)
        return child.status, child

    def log(self, name: str) -> Path:
        """Where a program's stderr goes."""
        return self.folder / f"{name}.log"

    def _start(self, verb: str, *words: object, **environment: str) -> Child:
        settings = self.settings | environment
        return Child(coordinate, verb, "-w", self.workspace, *words, log=self.log(verb), environment=settings)


def found(folder: Path, width: int = 32, **settings: str) -> Pool:
    """Make a tiny base model of some width and a pool over it; settings are as in coordinator.toml."""
    folder.mkdir(parents=True)
    named = {f"GREYLAG_COORDINATOR_{name.upper()}": value for name, value in settings.items()}
    pool = Pool(folder, make_authority(folder / "tls"), free_port(), named)
    must(Child(_make_base, pool.base, width, log=pool.log("base")).ended(120) == 0, "The base model was not made.")
    recipe = ("--rank", "4", "--alpha", "4")
    status, _ = pool.verb("init", "--single", "--name", "faults", "--base", str(pool.base), *recipe)
    must(status == 0, f"The pool was not founded: {pool.log('init').read_text()[-500:]}")
    return pool


def _make_base(folder: Path, width: int) -> None:
    from tests import factories  # noqa: PLC0415 - torch, where it is there already

    os.environ["TQDM_DISABLE"] = "1"
    factories.make_t5(folder, d_model=width)


def must(holds: object, otherwise: str) -> None:
    """Raise `RuntimeError` unless something holds."""
    if not holds:
        raise RuntimeError(otherwise)


def wait(look: Callable[[], Found], seconds: float, otherwise: str) -> Found:
    """Look until something is there, and return it; `RuntimeError` if it does not come in time."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        must(time.monotonic() < end, otherwise)
        time.sleep(0.2)
    return seen


def tell(sentence: str) -> None:
    """Report progress."""
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
