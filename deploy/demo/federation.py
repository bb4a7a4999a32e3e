"""Who takes part in a demo: one coordinator with its worker, one router that follows, and contributors."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.processes import first_document, run, running, wait_until
from deploy.demo.story import Example, Founding, Story
from protocol.files.atomic import write_whole
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from protocol.wire.grpc_client import DEADLINE_S, connect

POOL_NAME = "demo"
METHODS = ("base", "expert", "merged", "phatgoose", "nnls-request")
"""What routers offer; `merged` asks every expert for every token, so a router does only if it is told to."""
JOINED = ".joined"
"""Empty file of a contributor's place that is whole."""
SETTLE_S = 60.0
"""How long the router may take to follow the last release, in seconds."""

Say = Callable[[str, str], None]
"""Tells a person who did what."""


@dataclass
class Federation:
    """Where everybody is."""

    folder: Path
    founding: Founding
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
        """Give a contributor a private file, which is returned, and a workspace with a key of its own; once."""
        place = self.place(contributor)
        data = place / "private.jsonl"
        if not (place / JOINED).exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            data.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
            run(
                "client", "init", "-w", place, "--coordinator", self.coordinator, *self.trust,
                "--base", self.founding.base, "--name", contributor, log=self.log(contributor),
            )  # fmt: skip
            (place / JOINED).touch()
        return data

    def contribute(self, contributor: str, data: Path, on_progress: Callable[[dict[str, Any]], None]) -> str:
        """Train, pack, submit and wait for the verdict; returns what the client said in the end.

        Raises:
            RuntimeError: The client failed.
        """
        log, place = self.log(contributor), self.place(contributor)
        share = [flag for each in self.founding.statistics for flag in ("--share", each)]
        arguments = ("contribute", "-w", place, "--data", data, *share, "--wait", "--progress", "jsonl")
        here = {"GREYLAG_CLIENT_COORDINATOR": self.coordinator}  # client.toml may know an earlier address
        program = running("client", *arguments, log=log, talk=subprocess.PIPE, environment=here)
        with program as process, log.open("a") as talk:
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


def found_pool(folder: Path, founding: Founding, *options: object, digest: str = "") -> str:
    """Found a demo's pool below a folder, with its logs beside it, or find the one that is there.

    Args:
        folder: Of everything; emptied, unless a pool was founded there for the same.
        founding: What the pool is founded on.
        options: More flags of `greylag-coordinator init`.
        digest: Of what the pool is for; another one, another pool.

    Returns:
        The pool's key.
    """
    mark = folder / "founded.json"
    if mark.is_file() and (known := json.loads(mark.read_text()))["digest"] == digest:
        return str(known["key"])
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    given: list[object] = []
    for flag, lines in (("--probe", founding.probe), ("--public-text", founding.public)):
        if lines:
            path = folder / f"{flag.strip('-')}.txt"
            path.write_text("".join(f"{' '.join(line.split())}\n" for line in lines))
            given += [flag, path]
    for flag, examples in (("--rows", founding.rows), ("--canaries", founding.canaries)):
        if examples:
            path = folder / f"{flag.strip('-')}.jsonl"
            path.write_text("".join(json.dumps(row._asdict()) + "\n" for row in examples))
            given += [flag, path]
    telling = [flag for each in founding.statistics for flag in ("--statistics", each)]
    founded = run(
        "coordinator", "init", "--single", "-w", folder / "coordinator", "--name", POOL_NAME, "--base", founding.base,
        *given, *telling, *founding.flags, *options, "--json", log=folder / "logs" / "coordinator.log",
    )  # fmt: skip
    key = str(json.loads(founded)["key"])
    write_whole(mark, json.dumps({"digest": digest, "key": key}).encode())
    return key


@contextmanager
def serving(folder: Path, name: str, *arguments: object, **environment: str) -> Iterator[dict[str, Any]]:
    """Keep one of the servers running for the length of a block; yields what it says of itself."""
    log = folder / "logs" / f"{name if arguments[0] == 'serve' else arguments[0]}.log"
    with running(name, *arguments, "-w", folder / name, "--json", log=log, environment=environment) as process:
        yield first_document(process, log)


@contextmanager
def routing(folder: Path, base: str, coordinator: str, *options: object) -> Iterator[str]:
    """Keep a router running that follows a coordinator; yields its address."""
    follow = ("--coordinator", coordinator, "--base", base, "--follow-interval-s", 0.5, "--listen", "127.0.0.1:0")
    with serving(folder, "router", "serve", *follow, *options, GREYLAG_ROUTER_METHODS=json.dumps(METHODS)) as router:
        yield router["address"]


@contextmanager
def federation(folder: Path, story: Story, say: Say) -> Iterator[Federation]:
    """Start coordinator, worker and router; stop them at the end."""
    founding = story.founding
    say("coordinator", f"founds a pool over {Path(founding.base).name}, or finds the one that it founded")
    key = found_pool(folder, founding, digest=story.digest)
    say("coordinator", f"keeps pool {POOL_NAME}, key {key[:16]}")
    with (
        serving(folder, "coordinator", "serve", "--listen", "127.0.0.1:0") as coordinator,
        running("coordinator", "worker", "-w", folder / "coordinator", log=folder / "logs" / "worker.log"),
        routing(folder, founding.base, address := coordinator["address"]) as router,
    ):
        say("coordinator", f"serves on {address}")
        say("router", f"answers on {router}, follows {address}")
        yield Federation(folder, founding, address, router, ("--pool-key", key), say)
