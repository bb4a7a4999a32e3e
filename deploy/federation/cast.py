"""Everybody who takes part: one coordinator with three processes, a router that follows, and daemons."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from deploy.demo.federation import BASE, Say, found_pool
from deploy.demo.processes import first_document, free_port, run, running
from deploy.demo.world import World
from deploy.federation.certificate import make_certificate
from deploy.federation.wiretap import tapped

SEED = 1
PLANT_EVERY = 16
ASK_AGAIN_S = 3
CAMPAIGN_S = 240.0
"""Longest campaign, in seconds."""


def planted(contributor: str) -> str:
    """A word that stands in a contributor's private rows and must be found nowhere else."""
    return f"zanzibar-{contributor}-4711"


@dataclass
class Cast:
    """Where everybody is."""

    folder: Path
    address: str
    fleet: str
    router: str
    certificate: Path
    say: Say
    stack: ExitStack
    daemons: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        """The coordinator's workspace."""
        return self.folder / "coordinator"

    def place(self, contributor: str) -> Path:
        """A contributor's workspace."""
        return self.folder / "contributors" / contributor

    def operate(self, *arguments: object) -> dict[str, Any]:
        """Run one of the operator's verbs and read its JSON."""
        said = run(
            "coordinator", *arguments, "-w", self.coordinator, "--json", log=self.folder / "logs" / "operator.log"
        )
        document: dict[str, Any] = json.loads(said)
        return document

    def join(self, contributor: str, world: World, rows: int) -> Path:
        """Give a contributor a private file, a workspace, and a policy that lets every campaign run."""
        place = self.place(contributor)
        place.mkdir(parents=True)
        data = place / "private.jsonl"
        examples = [example._asdict() for example in world.train(contributor, rows, SEED)]
        for row in examples[::PLANT_EVERY]:
            row["input"] = f"{planted(contributor)} {row['input']}"
        data.write_text("".join(json.dumps(row) + "\n" for row in examples))
        self.init(contributor)
        policy = {"data": str(data), "campaigns": {"train": "auto", "evaluate": "auto", "calibrate": "auto"}}
        (place / "daemon.toml").write_text(tomli_w.dumps(policy))
        return data

    def init(self, contributor: str) -> None:
        """Make a contributor's workspace."""
        run(
            "client", "init", "-w", self.place(contributor), "--coordinator", self.address, "--ca", self.certificate,
            "--base", BASE, "--name", contributor, log=self.folder / "logs" / f"{contributor}.log",
        )  # fmt: skip

    def start(self, contributor: str) -> None:
        """Start a contributor's daemon."""
        log = self.folder / "logs" / f"{contributor}.log"
        daemon = running("client", "daemon", "-w", self.place(contributor), log=log)
        self.daemons[contributor] = self.stack.enter_context(daemon)
        self.say(contributor, "its daemon runs")

    def kill(self, contributor: str) -> None:
        """End a contributor's daemon as a power cut would."""
        daemon = self.daemons.pop(contributor)
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
        self.say(contributor, "its daemon was killed")

    def campaign(
        self, kind: str, *options: object, open_for_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Start a campaign, let something happen, and wait for its end.

        Raises:
            RuntimeError: It does not come to an end.
        """
        minutes = ("--open-for", open_for_s / 60, "--ends-after", CAMPAIGN_S / 60)
        number = self.operate("campaign", "start", kind, *minutes, *options)["campaign"]["number"]
        self.say("coordinator", f"campaign {number} ({kind}) begins")
        meanwhile()
        return self.finished(number)

    def finished(self, number: int) -> dict[str, Any]:
        """Wait until a campaign is over, and return what it said."""
        end = time.monotonic() + CAMPAIGN_S + 60
        while time.monotonic() < end:
            shown = self.operate("campaign", "show", number)
            if shown["campaign"]["state"] == "finished":
                self.say("coordinator", f"campaign {number}: {shown['summary']}")
                return shown
            time.sleep(1)
        raise RuntimeError(f"Campaign {number} does not come to an end.")

    def answered(self, number: int) -> dict[str, str]:
        """Where each contributor stands in a campaign."""
        return {entry["contributor"]: entry["state"] for entry in self.operate("campaign", "show", number)["answers"]}

    def settle(self) -> None:
        """Wait until the worker has nothing more to do with any bundle.

        Raises:
            RuntimeError: It does not get there.
        """
        end = time.monotonic() + CAMPAIGN_S
        while time.monotonic() < end:
            waiting = {"received", "verified", "quarantined"}
            experts = self.operate("experts", "ls")["experts"]
            listed = max((row["experts"] for row in self.candidates() if row["state"] == "open"), default=0)
            new = [e for e in experts if e["state"] == "accepted" and e["code"] != "HELD_BACK"]
            released = [e for e in experts if e["state"] == "released"]
            if not any(e["state"] in waiting for e in experts) and listed in (0, len(new) + len(released)):
                return
            time.sleep(1)
        raise RuntimeError("The worker does not come to rest.")

    def candidates(self) -> list[dict[str, Any]]:
        """Every candidate with its decision."""
        rows: list[dict[str, Any]] = self.operate("candidates", "ls")["candidates"]
        return rows


@contextmanager
def cast(folder: Path, say: Say) -> Iterator[Cast]:
    """Found a pool whose releases are evaluated first, and start everybody but the contributors."""
    found_pool(folder, "--promotion", "evaluated")
    place, logs = folder / "coordinator", folder / "logs"
    certificate, key = make_certificate(folder)
    tls = ("--tls-cert", certificate, "--tls-key", key)
    address, fleet, *behind = (f"127.0.0.1:{free_port()}" for _ in range(4))
    with ExitStack() as stack:
        (folder / "wires").mkdir()
        for name, outer, inner in zip(("intake", "fleet"), (address, fleet), behind, strict=True):
            stack.enter_context(tapped(outer, inner, certificate, key, folder / "wires" / f"{name}.bin"))
        serve = ("serve", "-w", place, "--listen", behind[0], "--fleet", fleet, *tls, "--json")
        server = stack.enter_context(running("coordinator", *serve, log=logs / "coordinator.log"))
        stack.enter_context(running("coordinator", "worker", "-w", place, log=logs / "worker.log"))
        link = ("fleet", "-w", place, "--listen", behind[1], *tls, "--ask-again", ASK_AGAIN_S, "--json")
        superlink = stack.enter_context(running("coordinator", *link, log=logs / "fleet.log"))
        first_document(server, logs / "coordinator.log")
        first_document(superlink, logs / "fleet.log")
        say("coordinator", f"serves on {address}, takes daemons on {fleet}")
        follow = ("--base", BASE, "--follow-interval-s", "0.5", "--listen", "127.0.0.1:0", "--json")
        reach = ("serve", "-w", folder / "router", "--coordinator", address, "--ca", certificate)
        router = stack.enter_context(running("router", *reach, *follow, log=logs / "router.log"))
        where = first_document(router, logs / "router.log")["address"]
        yield Cast(folder, address, fleet, where, certificate, say, stack)
