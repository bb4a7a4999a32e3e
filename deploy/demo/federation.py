"""The demo's cast: one coordinator with its worker, one router that follows, and contributors."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.processes import first_document, run, running
from deploy.demo.world import World

BASE = Path(__file__).parent / "base"
POOL_NAME = "demo"
EXAMPLES = 512
"""Rows in a contributor's private file."""
TRAIN_SEED = 1
# Found on the demo's base model; see make_base.py for how the base came about.
RECIPE = {
    "--rank": 4, "--alpha": 4, "--learning-rate": 1.5e-3, "--expert-steps": 200, "--gate-steps": 100,
    "--batch-size": 16, "--eval-every": 100, "--max-input-tokens": 48, "--max-target-tokens": 16,
}  # fmt: skip
# What the demo compares; `merged` asks every expert for every token, so a router offers it only if it is told to.
OPEN = {"GREYLAG_ROUTER_METHODS": json.dumps(["base", "expert", "merged", "phatgoose"])}
PROBE = ("please copy it : a b c d", "kindly write it : k f a c", "now give it : m n p")

Say = Callable[[str, str], None]
"""Tells a person who did what."""


@dataclass(frozen=True)
class Federation:
    """Where everybody is."""

    folder: Path
    coordinator: str
    """Address of the coordinator."""
    router: str
    """Address of the router."""
    pool_key: str

    def log(self, who: str) -> Path:
        """File with what a process said on stderr."""
        return self.folder / "logs" / f"{who}.log"

    def workspace(self, contributor: str) -> Path:
        """Folder of one contributor."""
        return self.folder / "contributors" / contributor


def found_pool(folder: Path, *options: object) -> str:
    """Found the demos' pool below a folder that is still empty, with its logs beside it; returns the pool's key."""
    (folder / "logs").mkdir(parents=True)
    probe = folder / "probe.txt"
    probe.write_text("\n".join(PROBE) + "\n")
    recipe = [word for flag, value in RECIPE.items() for word in (flag, value)]
    founded = run(
        "coordinator", "init", "--workspace", folder / "coordinator", "--name", POOL_NAME, "--base", BASE,
        "--probe", probe, *recipe, *options, "--json", log=folder / "logs" / "coordinator.log",
    )  # fmt: skip
    key: str = json.loads(founded)["key"]
    return key


@contextmanager
def federation(folder: Path, say: Say) -> Iterator[Federation]:
    """Start coordinator, worker and router; stop them at the end."""
    place, logs = folder / "coordinator", folder / "logs"
    key = found_pool(folder)
    say("coordinator", f"founded pool {POOL_NAME}, key {key[:16]}")
    listen = ("--listen", "127.0.0.1:0", "--json")
    with (
        running("coordinator", "serve", "--workspace", place, *listen, log=logs / "coordinator.log") as server,
        running("coordinator", "worker", "--workspace", place, log=logs / "worker.log"),
    ):
        address = first_document(server, logs / "coordinator.log")["address"]
        say("coordinator", f"serves on {address}")
        with running(
            "router", "serve", "--workspace", folder / "router", "--coordinator", address, "--base", BASE,
            "--follow-interval-s", "0.5", *listen, log=logs / "router.log", environment=OPEN,
        ) as router:  # fmt: skip
            where = first_document(router, logs / "router.log")["address"]
            say("router", f"answers on {where}, follows {address}")
            yield Federation(folder, address, where, key)


def join(cast: Federation, contributor: str, world: World) -> Path:
    """Give a contributor a private file and a workspace with a key of its own.

    Returns:
        The private file.
    """
    place = cast.workspace(contributor)
    place.mkdir(parents=True)
    data = place / "private.jsonl"
    rows = world.train(contributor, EXAMPLES, TRAIN_SEED)
    data.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
    run(
        "client", "init", "--workspace", place, "--coordinator", cast.coordinator, "--pool-key", cast.pool_key,
        "--base", BASE, "--name", contributor, log=cast.log(contributor),
    )  # fmt: skip
    return data


def contribute(cast: Federation, contributor: str, data: Path, on_progress: Callable[[dict[str, Any]], None]) -> str:
    """Train, pack and submit, and wait for the verdict.

    Args:
        cast: Where the coordinator is.
        contributor: Whose workspace.
        data: Its private file.
        on_progress: Told about every step of training and upload.

    Returns:
        What the client said in the end: digest, name and state.

    Raises:
        RuntimeError: The client failed.
    """
    log = cast.log(contributor)
    place = cast.workspace(contributor)
    arguments = ("contribute", "--workspace", place, "--data", data, "--wait", "--progress", "jsonl")
    with running("client", *arguments, log=log, stderr=subprocess.PIPE) as process, log.open("a") as talk:
        assert process.stderr is not None  # noqa: S101 - started with pipes
        assert process.stdout is not None  # noqa: S101
        for line in process.stderr:
            if line.startswith("{"):
                on_progress(json.loads(line))
            else:
                talk.write(line)
        said = process.stdout.read().strip()
        if process.wait():
            raise RuntimeError(f"{contributor} failed: see {log}")
    return said


def watch(stopped: threading.Event, router: str, say: Say) -> None:
    """Tell whenever the router has taken up a new release, until stopped."""
    from protocol.v1 import query_pb2  # noqa: PLC0415
    from protocol.v1.query_pb2_grpc import QueryStub  # noqa: PLC0415
    from protocol.wire.grpc_client import connect  # noqa: PLC0415 - keeps the first screen quick

    seen = 0
    with connect(router) as channel:
        while not stopped.wait(0.3):
            info = QueryStub(channel).Info(query_pb2.InfoRequest(), timeout=10)
            if info.release != seen:
                seen = info.release
                say("router", f"took up release {seen}: {len(info.experts)} experts")
