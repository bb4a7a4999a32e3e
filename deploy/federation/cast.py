"""Everybody who takes part: one coordinator with three processes, a router that follows, and daemons."""

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from deploy.demo.federation import Federation, Say, found_pool, routing, serving
from deploy.demo.processes import free_port, run, running, wait_until
from deploy.demo.story import Example
from deploy.demo.world import WORDS
from deploy.federation.wiretap import make_certificate, tapped

PLANT_EVERY = 16
ASK_AGAIN_S = 3
CAMPAIGN_S = 240.0
"""Longest campaign, in seconds."""


def planted(contributor: str) -> str:
    """A word that stands in a contributor's private rows and must be found nowhere else."""
    return f"zanzibar-{contributor}-4711"


@dataclass
class Cast(Federation):
    """Where everybody is, with the fleet."""

    fleet: str
    certificate: Path
    stack: ExitStack
    daemons: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)

    def operate(self, *arguments: object) -> dict[str, Any]:
        """Run one of the operator's verbs and read its JSON."""
        said = run("coordinator", *arguments, "-w", self.folder / "coordinator", "--json", log=self.log("operator"))
        document: dict[str, Any] = json.loads(said)
        return document

    def join(self, contributor: str, rows: Iterable[Example]) -> Path:
        """Plant a word in a contributor's private file, and let every campaign run."""
        word = f"{planted(contributor)} "
        mine = [row if at % PLANT_EVERY else row._replace(input=word + row.input) for at, row in enumerate(rows)]
        data = super().join(contributor, mine)
        policy = {"data": str(data), "campaigns": {"train": "auto", "evaluate": "auto", "calibrate": "auto"}}
        (self.place(contributor) / "daemon.toml").write_text(tomli_w.dumps(policy))
        return data

    def start(self, contributor: str) -> None:
        """Start a contributor's daemon."""
        daemon = running("client", "daemon", "-w", self.place(contributor), log=self.log(contributor))
        self.daemons[contributor] = self.stack.enter_context(daemon)
        self.say(contributor, "its daemon runs")

    def kill(self, contributor: str) -> None:
        """End a contributor's daemon as a power cut would."""
        daemon = self.daemons.pop(contributor)
        daemon.kill()
        daemon.wait()
        self.say(contributor, "its daemon was killed")

    def campaign(
        self, kind: str, *options: object, open_for_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Start a campaign, let something happen, wait for its end, and return what it said.

        Raises:
            RuntimeError: It does not come to an end.
        """
        minutes = ("--open-for", open_for_s / 60, "--ends-after", CAMPAIGN_S / 60)
        number = self.operate("campaign", "start", kind, *minutes, *options)["campaign"]["number"]
        self.say("coordinator", f"campaign {number} ({kind}) begins")
        meanwhile()
        endless = f"Campaign {number} does not come to an end."
        wait_until(lambda: self.shown(number)["campaign"]["state"] == "finished", CAMPAIGN_S + 60, endless)
        shown = self.shown(number)
        self.say("coordinator", f"campaign {number}: {shown['summary']}")
        return shown

    def shown(self, campaign: int) -> dict[str, Any]:
        """What a campaign has come to so far."""
        return self.operate("campaign", "show", campaign)

    def settle(self) -> None:
        """Wait until the worker has nothing more to do with any bundle.

        Raises:
            RuntimeError: It does not get there.
        """

        def at_rest() -> bool:
            experts = self.operate("experts", "ls")["experts"]
            listed = max((row["experts"] for row in self.candidates() if row["state"] == "open"), default=0)
            released = [e for e in experts if e["state"] == "released"]
            new = [e for e in experts if e["state"] == "accepted" and e["code"] != "HELD_BACK"]
            waits = any(e["state"] in ("received", "verified", "quarantined") for e in experts)
            return not waits and listed in (0, len(new) + len(released))

        wait_until(at_rest, CAMPAIGN_S, "The worker does not come to rest.")

    def candidates(self) -> list[dict[str, Any]]:
        """Every candidate with its decision."""
        rows: list[dict[str, Any]] = self.operate("candidates", "ls")["candidates"]
        return rows


@contextmanager
def cast(folder: Path, say: Say) -> Iterator[Cast]:
    """Found a pool whose releases are evaluated first, and start everybody but the contributors."""
    # Without rows of the operator's: what an expert does is for contributors' own data to say here.
    found_pool(folder, replace(WORDS, rows=(), canaries=()), "--promotion", "evaluated")
    certificate, key = make_certificate(folder)
    tls = ("--tls-cert", certificate, "--tls-key", key)
    address, fleet, *behind = (f"127.0.0.1:{free_port()}" for _ in range(4))
    with ExitStack() as stack:
        (folder / "wires").mkdir()
        for name, outer, inner in zip(("intake", "fleet"), (address, fleet), behind, strict=True):
            stack.enter_context(tapped(outer, inner, certificate, key, folder / "wires" / f"{name}.bin"))
        for arguments in (
            ("serve", "--listen", behind[0], "--fleet", fleet, *tls),
            ("fleet", "--listen", behind[1], *tls, "--ask-again", ASK_AGAIN_S),
        ):
            stack.enter_context(serving(folder, "coordinator", *arguments))
        worker = running("coordinator", "worker", "-w", folder / "coordinator", log=folder / "logs" / "worker.log")
        stack.enter_context(worker)
        say("coordinator", f"serves on {address}, takes daemons on {fleet}")
        trust = ("--ca", certificate)
        router = stack.enter_context(routing(folder, WORDS.base, address, *trust))
        yield Cast(folder, WORDS, address, router, trust, say, fleet, certificate, stack)
