"""Real processes with TLS and node authentication: a coordinator, its fleet, and daemons that may be killed."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.demo.processes import first_document, free_port, running
from deploy.federation.certificate import make_certificate
from tests.system.town import RECIPE, succeed, write_rows

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


@dataclass(frozen=True)
class City:
    """Where everything is."""

    folder: Path
    base: Path
    port: int
    fleet: str
    environment: dict[str, str]

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    @contextmanager
    def serving(self) -> Iterator[None]:
        log = self.folder / "serve.log"
        arguments = ("serve", "-w", self.pool, "--listen", f"127.0.0.1:{self.port}", "--fleet", self.fleet, *self.tls)
        with running("coordinator", *arguments, "--json", log=log, environment=self.environment) as process:
            first_document(process, log)
            yield

    @contextmanager
    def taking_daemons(self) -> Iterator[int]:
        log = self.folder / "fleet.log"
        arguments = ("fleet", "-w", self.pool, "--listen", self.fleet, *self.tls, "--ask-again", 2, "--json")
        with running("coordinator", *arguments, log=log, environment=self.environment) as process:
            first_document(process, log)
            yield process.pid

    @property
    def tls(self) -> tuple[object, ...]:
        return ("--tls-cert", self.folder / "cert.pem", "--tls-key", self.folder / "key.pem")

    @contextmanager
    def daemon(self, name: str) -> Iterator[int]:
        place, log = self.join(name), self.folder / f"{name}.log"
        with running("client", "daemon", "-w", place, log=log, environment=self.environment) as process:
            yield process.pid

    def join(self, name: str) -> Path:
        place = self.folder / name
        if not place.exists():
            succeed(
                "client", "init", "-w", place, "--coordinator", f"127.0.0.1:{self.port}",
                "--ca", self.folder / "cert.pem", "--base", self.base, "--name", name,
            )  # fmt: skip
            data = write_rows(place / "private.jsonl", 40 + len(name), marker=f"zanzibar-{name}")
            (place / "daemon.toml").write_text(f'data = "{data}"\n[campaigns]\ntrain = "auto"\nevaluate = "auto"\n')
        return place

    def ask(self, kind: str) -> int:
        said = succeed("coordinator", "campaign", "start", kind, "-w", self.pool, "--open-for", 0.5, "--json")
        return int(json.loads(said)["campaign"]["number"])

    def shown(self, number: int) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(
            succeed("coordinator", "campaign", "show", number, "-w", self.pool, "--json")
        )
        return shown

    def states(self, number: int) -> dict[str, str]:
        return {entry["contributor"]: entry["state"] for entry in self.shown(number)["answers"]}


def wait(until: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.5)


def children(pid: int, module: str) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if module in child.cmdline()]


@pytest.fixture
def city(tmp_path: Path, t5_base: Path) -> Iterator[City]:
    make_certificate(tmp_path)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": path, "FOREIGN": str(tmp_path / "foreign")}
    city = City(tmp_path, t5_base, free_port(), f"127.0.0.1:{free_port()}", environment)
    succeed("coordinator", "init", "-w", city.pool, "--name", "city", "--base", t5_base, *RECIPE)
    with city.serving():
        yield city


def test_a_daemon_answers_and_nobody_asks_the_internet(city: City) -> None:
    with city.taking_daemons(), city.daemon("ada"):
        number = city.ask("info")
        wait(lambda: city.states(number) == {"ada": "done"})
        (answer,) = city.shown(number)["answers"]
        assert answer["facts"]["rows"] == "fewer than 100"
    assert not (city.folder / "foreign").exists()
    for path in city.folder.rglob("*"):
        if path.is_file() and path.name != "private.jsonl":
            assert b"zanzibar" not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whatever_is_killed_in_the_middle_the_campaign_completes_and_nothing_is_doubled(city: City) -> None:
    with ExitStack() as stack:
        fleet = stack.enter_context(city.taking_daemons())
        daemons = {name: stack.enter_context(city.daemon(name)) for name in ("ada", "bobby")}
        number = city.ask("train")
        wait(lambda: set(city.states(number)) == {"ada", "bobby"})
        for link in children(fleet, "coordinator.fleet.link"):
            link.kill()
        for executor in children(daemons["ada"], "client.daemon.executor"):
            executor.kill()
        for node in children(daemons["bobby"], "client.daemon.node"):
            node.kill()
        wait(lambda: city.states(number) == {"ada": "done", "bobby": "done"}, 240)
        wait(lambda: city.shown(number)["campaign"]["state"] == "finished")
        succeed("coordinator", "worker", "-w", city.pool, "--once")
        experts = json.loads(succeed("coordinator", "experts", "ls", "-w", city.pool, "--json"))["experts"]
        assert sorted(row["contributor"] for row in experts) == ["ada", "bobby"]
        assert {row["state"] for row in experts} == {"released"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_coordinator_that_is_killed_takes_the_campaign_up_again(city: City) -> None:
    with city.daemon("ada"):
        with city.taking_daemons() as fleet:
            number = city.ask("train")
            wait(lambda: city.states(number) == {"ada": "asked"})
            (link,) = children(fleet, "coordinator.fleet.link")
            os.kill(fleet, signal.SIGKILL)
            wait(lambda: not link.is_running() or link.status() == psutil.STATUS_ZOMBIE)
        with city.taking_daemons():
            wait(lambda: city.states(number) == {"ada": "done"}, 240)
    experts = json.loads(succeed("coordinator", "experts", "ls", "-w", city.pool, "--json"))["experts"]
    assert len(experts) == 1


@pytest.mark.slow
def test_a_contributor_whose_key_is_revoked_is_shut_out(city: City) -> None:
    with city.taking_daemons(), city.daemon("ada"):
        number = city.ask("info")
        wait(lambda: city.states(number) == {"ada": "done"})
        succeed("coordinator", "contributors", "revoke", "ada", "-w", city.pool)
        number = city.ask("info")
        wait(lambda: city.shown(number)["campaign"]["state"] == "finished")
        assert city.states(number) == {}
