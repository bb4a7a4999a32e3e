"""The process `fleet`: keeps Flower's server up, its list of keys equal to ours, and every campaign going."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path

import httpx
import structlog

from coordinator.fleet.campaigns.driver import Driver
from coordinator.fleet.campaigns.start import start_due
from coordinator.fleet.flower import client
from coordinator.fleet.flower.gateway import HEALTH, SECRET, LinkConfig
from coordinator.fleet.records.fleet import Fleet
from coordinator.workspace.context import Opened
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.files.atomic import renew_secret
from protocol.programs import end_child

START_S = 60.0
"""How long Flower's server may take to come up, in seconds."""
_PRIVATE = "GREYLAG_"
"""Beginning of variables that Flower's server is not told."""
_log = structlog.get_logger(__name__)


def configure(opened: Opened) -> LinkConfig:
    """Make what Flower's server needs in the workspace.

    Raises:
        Refused: `SETTINGS_INVALID` without an address or certificate, or where the pool allows no campaigns.
    """
    settings, folder = opened.settings, opened.workspace.folder.resolve() / "fleet"
    if settings.fleet_listen is None or settings.tls_cert is None or settings.tls_key is None:
        raise Refused(
            Code.SETTINGS_INVALID,
            "Taking daemons needs an address and a certificate, on loopback, too.",
            "Set fleet_listen, tls_cert and tls_key in coordinator.toml, for `serve` and for `fleet`.",
        )
    if not opened.pool.spec.policy.apps:
        raise Refused(
            Code.SETTINGS_INVALID, "The pool's signed policy allows no campaigns.", "Found a pool that allows them."
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    renew_secret(folder / SECRET)
    return LinkConfig(settings.fleet_listen, str(settings.tls_cert), str(settings.tls_key), str(folder))


def run(
    opened: Opened,
    stopped: threading.Event,
    *,
    clock: Callable[[], datetime],
    on_ready: Callable[[int], None],
    interval_s: float,
    ask_again_s: float,
) -> None:
    """Work until told to stop.

    Args:
        opened: The workspace.
        stopped: Set to stop.
        clock: Tells the time.
        on_ready: Called with the public port whenever the server has come up.
        interval_s: Pause between two rounds, in seconds.
        ask_again_s: Pause before a node is asked again, in seconds.

    Raises:
        Refused: As `configure`.
    """
    config = configure(opened)
    log, secret = Path(config.folder, "flower.log"), Path(config.folder, SECRET).read_bytes()
    while not stopped.is_set():
        try:
            with _server(config, log) as (process, inner, outer), closing(client.Superlink(inner, secret)) as superlink:
                driver = Driver(opened, superlink.begin, clock=clock, ask_again_s=ask_again_s)
                on_ready(outer)
                let_in: dict[str, str] = {}
                try:
                    while process.poll() is None and not stopped.is_set():
                        try:
                            step(opened, superlink, driver, let_in, now=clock())
                        except httpx.HTTPError as error:
                            _log.warning("flower does not answer", error=type(error).__name__)
                            driver.lose_runs()
                        stopped.wait(interval_s)
                finally:
                    driver.lose_runs()
        except Unavailable as error:
            _log.warning("waiting", code=error.code.name, message=error.message)
            stopped.wait(interval_s)


@contextmanager
def _server(config: LinkConfig, log: Path) -> Iterator[tuple["subprocess.Popen[str]", int, int]]:
    """Keep Flower's server up as a child process, which ends with this one, however this one ends.

    Yields:
        The process, and the ports of its inner and outer door.

    Raises:
        Unavailable: `BUSY` if it does not come up.
    """
    with log.open("a") as talk:
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.fleet.flower.gateway"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=talk, text=True,
            # Flower signs nothing: what opens keys stays here.
            env={name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)},
        )  # fmt: skip
    try:
        assert process.stdin is not None  # noqa: S101 - started with pipes
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(json.dumps(asdict(config)) + "\n")
        process.stdin.flush()
        where = json.loads(process.stdout.readline() or "null")
        if where is None or not _comes_up(process, where["inner"]):
            raise Unavailable(Code.BUSY, f"Flower's server does not come up; see {log}.", "It is tried again.")
        yield process, where["inner"], where["outer"]
    finally:
        end_child(process)


def _comes_up(process: "subprocess.Popen[str]", port: int) -> bool:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}{HEALTH}", timeout=5).status_code == httpx.codes.OK:
                return True
        time.sleep(0.1)
    return False


def step(opened: Opened, superlink: client.Superlink, driver: Driver, let_in: dict[str, str], *, now: datetime) -> None:
    """Do once whatever is to be done; what one part fails over keeps no other from its work.

    Args:
        opened: The workspace.
        superlink: Flower's server.
        driver: Of the campaigns.
        let_in: Keys of nodes with their states, as the server was told; kept up to date.
        now: The time.

    Raises:
        httpx.HTTPError: Flower's server does not answer.
    """
    parts: tuple[Callable[[], object], ...] = (
        partial(_let_in, Fleet(opened.registry), superlink, let_in),
        partial(start_due, opened, now=now),
        driver.step,
    )
    for part in parts:
        try:
            part()
        except httpx.HTTPError:
            raise
        except GreylagError as error:
            _log.warning("waiting", code=error.code.name, message=error.message)
        except Exception:  # noqa: BLE001 - whatever it is, the other parts go on
            _log.exception("one part of the work failed")


def _let_in(fleet: Fleet, superlink: client.Superlink, told: dict[str, str]) -> None:
    """Make Flower's list of keys equal to the registry's, if that has changed since the server was told."""
    nodes = fleet.nodes.all()
    ours = {node.public: node.state for node, _ in nodes}
    if ours == told:
        return
    theirs = {node.public_key.decode(): node for node in superlink.nodes()}
    for node, name in nodes:
        if node.state == "active" and node.public not in theirs:
            try:
                superlink.register(node.public, name)
                _log.info("node let in", contributor=name)
            except httpx.HTTPStatusError as error:
                _log.warning("node not let in", contributor=name, status=error.response.status_code)
                del ours[node.public]  # it is tried again
    for public, known in theirs.items():
        if known.status != "unregistered" and ours.get(public) != "active":
            superlink.unregister(known.node_id)
            _log.info("node shut out", contributor=known.name)
    # Last, since whatever failed before is to be done again.
    told.clear()
    told.update(ours)
