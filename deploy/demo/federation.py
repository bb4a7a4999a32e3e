"""Who takes part in a demo: one coordinator with its worker, one router that follows, and contributors."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.processes import first_document, run, running, wait_until
from deploy.demo.world import Example, marked
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from protocol.wire.grpc_client import DEADLINE_S, connect

BASE = Path(__file__).parent / "base"
POOL_NAME = "demo"
# Found on the demo's base model; see make_base.py for how the base came about.
RECIPE = (
    "--rank", 4, "--alpha", 4, "--learning-rate", 1.5e-3, "--expert-steps", 200, "--gate-steps", 100,
    "--batch-size", 16, "--eval-every", 100, "--max-input-tokens", 48, "--max-target-tokens", 16,
)  # fmt: skip
METHODS = ("base", "expert", "merged", "phatgoose")
"""What the demo compares; `merged` asks every expert for every token, so a router offers it only if it is told to."""
PROBE = ("please copy it : a b c d", "kindly write it : k f a c", "now give it : m n p")
TRIED = 32
"""Public rows on which the operator tries experts, and as many that stay with him."""
ROWS_SEED, CANARIES_SEED = 5, 6
SETTLE_S = 60.0
"""How long the router may take to follow the last release, in seconds."""

Say = Callable[[str, str], None]
"""Tells a person who did what."""


@dataclass
class Federation:
    """Where everybody is."""

    folder: Path
    coordinator: str
    """Address of the coordinator."""
    router: str
    """Address of the router."""
    trust: tuple[object, ...]
    """Flags by which a contributor knows the coordinator."""
    say: Say

    def log(self, who: str) -> Path:
        """File with what a process said on stderr."""
        return self.folder / "logs" / f"{who}.log"

    def place(self, contributor: str) -> Path:
        """A contributor's workspace."""
        return self.folder / "contributors" / contributor

    def join(self, contributor: str, rows: Iterable[Example]) -> Path:
        """Give a contributor a private file, which is returned, and a workspace with a key of its own."""
        place = self.place(contributor)
        place.mkdir(parents=True)
        data = place / "private.jsonl"
        data.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
        run(
            "client", "init", "-w", place, "--coordinator", self.coordinator, *self.trust, "--base", BASE,
            "--name", contributor, log=self.log(contributor),
        )  # fmt: skip
        return data

    def contribute(self, contributor: str, data: Path, on_progress: Callable[[dict[str, Any]], None]) -> str:
        """Train, pack, submit and wait for the verdict; returns what the client said in the end.

        Raises:
            RuntimeError: The client failed.
        """
        log, place = self.log(contributor), self.place(contributor)
        arguments = ("contribute", "-w", place, "--data", data, "--wait", "--progress", "jsonl")
        with running("client", *arguments, log=log, talk=subprocess.PIPE) as process, log.open("a") as talk:
            for line in process.stderr or ():
                if line.startswith("{"):
                    on_progress(json.loads(line))
                else:
                    talk.write(line)
            said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{contributor} failed: see {log}")
        return said.strip()

    def watch(self, experts: int, contributed: threading.Event) -> None:
        """Tell whenever the router has taken up a new release, until all have contributed and one has so many experts.

        Raises:
            RuntimeError: None has in time, which runs from when all have contributed.
        """
        seen = 0
        with connect(self.router) as channel:

            def look() -> bool:
                nonlocal seen
                info = QueryStub(channel).Info(query_pb2.InfoRequest(), timeout=DEADLINE_S)
                if info.release != seen:
                    seen = info.release
                    self.say("router", f"took up release {seen}: {len(info.experts)} experts")
                return len(info.experts) >= experts

            while not contributed.wait(0.5):
                look()
            wait_until(look, SETTLE_S, "The router did not follow the last release.")


def found_pool(folder: Path, *options: object) -> str:
    """Found the demos' pool below a folder that is still empty, with its logs beside it; returns the pool's key."""
    (folder / "logs").mkdir(parents=True)
    probe = folder / "probe.txt"
    probe.write_text("\n".join(PROBE) + "\n")
    rows, canaries = folder / "rows.jsonl", folder / "canaries.jsonl"
    # What the base can do already, and no expert should spoil.
    rows.write_text("".join(json.dumps(row._asdict()) + "\n" for row in marked(TRIED, ROWS_SEED)))
    canaries.write_text("".join(json.dumps(row._asdict()) + "\n" for row in marked(TRIED, CANARIES_SEED)))
    founded = run(
        "coordinator", "init", "-w", folder / "coordinator", "--name", POOL_NAME, "--base", BASE,
        "--probe", probe, "--rows", rows, "--canaries", canaries, *RECIPE, *options, "--json",
        log=folder / "logs" / "coordinator.log",
    )  # fmt: skip
    return str(json.loads(founded)["key"])


@contextmanager
def serving(folder: Path, name: str, *arguments: object, **environment: str) -> Iterator[dict[str, Any]]:
    """Keep one of the servers running for the length of a block; yields what it says of itself."""
    log = folder / "logs" / f"{name if arguments[0] == 'serve' else arguments[0]}.log"
    with running(name, *arguments, "-w", folder / name, "--json", log=log, environment=environment) as process:
        yield first_document(process, log)


@contextmanager
def routing(folder: Path, coordinator: str, *options: object) -> Iterator[str]:
    """Keep a router running that follows a coordinator; yields its address."""
    follow = ("--coordinator", coordinator, "--base", BASE, "--follow-interval-s", 0.5, "--listen", "127.0.0.1:0")
    with serving(folder, "router", "serve", *follow, *options, GREYLAG_ROUTER_METHODS=json.dumps(METHODS)) as router:
        yield router["address"]


@contextmanager
def federation(folder: Path, say: Say) -> Iterator[Federation]:
    """Start coordinator, worker and router; stop them at the end."""
    key = found_pool(folder)
    say("coordinator", f"founded pool {POOL_NAME}, key {key[:16]}")
    with (
        serving(folder, "coordinator", "serve", "--listen", "127.0.0.1:0") as coordinator,
        running("coordinator", "worker", "-w", folder / "coordinator", log=folder / "logs" / "worker.log"),
        routing(folder, address := coordinator["address"]) as router,
    ):
        say("coordinator", f"serves on {address}")
        say("router", f"answers on {router}, follows {address}")
        yield Federation(folder, address, router, ("--pool-key", key), say)
