"""Real processes with TLS and node authentication: a coordinator, its fleet, and daemons that may be killed."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.registry import Registry
from deploy.demo.processes import first_document, free_port, running
from deploy.federation.wiretap import make_certificate, tapped
from protocol.fleet.campaign import KINDS
from tests.system.town import RECIPE, coordinate, succeed, write_rows

# Refuses every connection that would leave this machine, and writes it down.
HOOK = """
import os, sys
def audit(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "local"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host not in ("127.0.0.1", "localhost", "::1", "local", "0.0.0.0", "", "None", "::"):
        with open(os.environ["FOREIGN"], "a") as file:
            file.write(f"{event} {host}\\n")
        raise ConnectionRefusedError(host)
sys.addaudithook(audit)
"""


@dataclass
class City:
    """Where everything is, and what runs."""

    folder: Path
    base: Path
    environment: dict[str, str]
    door: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    fleet: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    behind: dict[str, str] = field(default_factory=dict)
    """Where the servers really listen; others reach them through a wiretap."""
    running: dict[str, tuple[ExitStack, int]] = field(default_factory=dict)

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    def start(self, name: str) -> int:
        """Start one of our programs, and return its process number."""
        tls = ("--tls-cert", self.folder / "cert.pem", "--tls-key", self.folder / "key.pem")
        arguments: dict[str, tuple[object, ...]] = {
            "serve": ("--listen", self.behind["door"], "--fleet", self.fleet, *tls, "--json"),
            "fleet": ("--listen", self.behind["fleet"], *tls, "--ask-again", 2, "--json"),
            "worker": (),
        }
        program = (
            ("coordinator", name, "-w", self.pool) if name in arguments else ("client", "daemon", "-w", self.join(name))
        )
        log, stack = self.folder / f"{name}.log", ExitStack()
        process = stack.enter_context(
            running(*program, *arguments.get(name, ()), log=log, environment=self.environment)
        )
        if "--json" in arguments.get(name, ()):
            first_document(process, log)
        self.running[name] = stack, process.pid
        return process.pid

    def kill(self, name: str) -> None:
        """End one of our programs as a power cut would, and start it again once its children are gone, too."""
        stack, pid = self.running.pop(name)
        offspring = psutil.Process(pid).children(recursive=True)
        os.kill(pid, signal.SIGKILL)
        stack.close()
        assert not psutil.wait_procs(offspring, 30)[1]
        self.start(name)

    def kill_child(self, name: str, module: str) -> None:
        """End a child of one of our programs, which starts it again."""
        (child,) = (each for each in psutil.Process(self.running[name][1]).children() if module in each.cmdline())
        child.kill()

    def close(self) -> None:
        for stack, _ in self.running.values():
            stack.close()

    def join(self, name: str) -> Path:
        place = self.folder / name
        if not place.exists():
            succeed(
                "client", "init", "-w", place, "--coordinator", self.door, "--ca", self.folder / "cert.pem",
                "--base", self.base, "--name", name,
            )  # fmt: skip
            data = write_rows(place / "private.jsonl", 40 + len(name), marker=f"zanzibar-{name}")
            (place / "daemon.toml").write_text(f'data = "{data}"\n[campaigns]\n{CONSENT}')
        return place

    def ask(self, kind: str) -> int:
        said = coordinate("campaign", "start", kind, "-w", self.pool, "--open-for", 0.5, "--json")
        return int(json.loads(said)["campaign"]["number"])

    def show(self, *verb: object) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(coordinate(*verb, "-w", self.pool, "--json"))
        return shown

    @contextmanager
    def records(self) -> Iterator[Fleet]:
        """Look into the registry itself, which costs less than a program does."""
        registry = Registry.open(f"sqlite:///{self.pool / 'registry.db'}")
        try:
            yield Fleet(registry)
        finally:
            registry.close()

    def proposes(self, experts: int) -> bool:
        return [row["experts"] for row in self.show("candidates", "ls")["candidates"]][-1:] == [experts]

    def states(self, number: int) -> dict[str, str]:
        with self.records() as fleet:
            return {name: answer.state for answer, name in fleet.campaigns.answers(number)}

    def finished(self, number: int) -> bool:
        with self.records() as fleet:
            return fleet.campaigns.find(number).state == "finished"


CONSENT = "".join(f'{kind} = "auto"\n' for kind in KINDS)


def wait(until: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.5)


@pytest.fixture
def city(tmp_path: Path, t5_base: Path) -> Iterator[City]:
    certificate, key = make_certificate(tmp_path)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    city = City(tmp_path, t5_base, {"PYTHONPATH": path, "FOREIGN": str(tmp_path / "foreign")})
    with ExitStack() as stack:
        for name, address in (("door", city.door), ("fleet", city.fleet)):
            city.behind[name] = f"127.0.0.1:{free_port()}"
            stack.enter_context(tapped(address, city.behind[name], certificate, key, tmp_path / f"{name}.wire"))
        stack.callback(city.close)
        named = ("--name", "city", "--base", t5_base, "--promotion", "evaluated")
        coordinate("init", "--single", "-w", city.pool, *named, *RECIPE)
        city.start("serve")
        city.start("fleet")
        yield city


def leaks(folder: Path) -> list[Path]:
    """Files, other than private ones, that hold a private row: logs, stores, and what was heard on the wires."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "private.jsonl")
    return [path for path in files if b"zanzibar" in path.read_bytes()]


def test_a_daemon_answers_and_nobody_asks_the_internet(city: City) -> None:
    city.start("ada")
    number = city.ask("info")
    wait(lambda: city.states(number) == {"ada": "done"})
    (answer,) = city.show("campaign", "show", number)["answers"]
    assert answer["facts"]["rows"] == "fewer than 100"
    assert not (city.folder / "foreign").exists()
    assert not leaks(city.folder)
    assert b"memory_gb" in (city.folder / "fleet.wire").read_bytes()  # the wiretap hears what is said
    assert b"in-toto" in (city.folder / "door.wire").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_killed_in_the_middle_the_campaign_completes_and_nothing_is_doubled(city: City, kind: str) -> None:
    city.start("worker")
    contributed = {"evaluate": ["carol"], "calibrate": ["carol", "dave"]}.get(kind, [])
    for number, name in enumerate(contributed, 1):
        data = city.join(name) / "private.jsonl"
        succeed("client", "contribute", "-w", city.join(name), "--data", data)
        wait(partial(city.proposes, number))
    for name in ("ada", "bobby"):
        city.start(name)
    number = city.ask(kind)
    wait(lambda: set(city.states(number)) == {"ada", "bobby"})
    city.kill_child("fleet", "coordinator.fleet.flower.gateway")
    city.kill_child("ada", "client.daemon.executor")
    city.kill_child("bobby", "client.daemon.supernode")
    for name in ("serve", "worker", "fleet", "ada"):
        city.kill(name)
    wait(lambda: city.states(number) == {"ada": "done", "bobby": "done"}, 240)
    wait(lambda: city.finished(number))
    trained = ["ada", "bobby"] if kind == "train" else contributed
    wait(lambda: all(row["state"] in ("accepted", "released") for row in city.show("experts", "ls")["experts"]))
    assert sorted(row["contributor"] for row in city.show("experts", "ls")["experts"]) == trained
    steps = [event["step"] for event in city.show("campaign", "log", number)["events"] if event["kind"] == "campaign"]
    assert steps == ["running", "finished"]
    answered = [told["answered"] for told in city.show("campaign", "show", number)["rounds"]]
    assert answered == ([["ada", "bobby"]] * 3 if kind == "calibrate" else [])
    decided = [row for row in city.show("candidates", "ls")["candidates"] if row["by"]]
    assert len(decided) == (kind == "evaluate")
    assert not leaks(city.folder)


@pytest.mark.slow
def test_a_contributor_whose_key_is_revoked_is_shut_out(city: City) -> None:
    city.start("ada")
    number = city.ask("info")
    wait(lambda: city.states(number) == {"ada": "done"})
    coordinate("contributors", "revoke", "ada", "-w", city.pool)
    number = city.ask("info")
    wait(lambda: city.finished(number))
    assert city.states(number) == {}
