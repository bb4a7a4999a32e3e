"""The process `fleet`: keeps Flower's server up, its list of keys equal to ours, and every campaign going."""

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
import structlog

from coordinator.fleet.campaigns.driver import Driver
from coordinator.fleet.campaigns.start import start_due
from coordinator.fleet.flower import client
from coordinator.fleet.flower.gateway import LinkConfig
from coordinator.fleet.records.campaigns import Fleet
from coordinator.workspace.context import Opened
from protocol.errors import Code, GreylagError, Refused, Unavailable

START_S = 60.0
"""How long Flower's server may take to come up, in seconds."""
_log = structlog.get_logger(__name__)


class Link:
    """Flower's server as a child process; it ends with this one, however this one ends.

    Args:
        config: What the child is told.
        log: File that its talk is appended to.
    """

    def __init__(self, config: LinkConfig, log: Path) -> None:
        self._config, self._log = config, log
        self._process: subprocess.Popen[str] | None = None
        self.inner = 0
        """Port of the inner door."""
        self.outer = 0
        """Port of the outer one."""

    @property
    def is_up(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the child and wait until it listens.

        Raises:
            Unavailable: `BUSY` if it does not come up.
        """
        with self._log.open("a") as talk:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "coordinator.fleet.flower.gateway"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=talk, text=True,
            )  # fmt: skip
        assert self._process.stdin is not None  # noqa: S101 - started with pipes
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(self._config.line())
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(Code.BUSY, f"Flower's server does not start; see {self._log}.", "It is tried again.")
        where = json.loads(line)
        self.inner, self.outer = where["inner"], where["outer"]
        _await(self.inner)

    def stop(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()


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
    secret = folder / "secret"
    # A new one each time: one that a kill left half written would keep nobody out.
    secret.unlink(missing_ok=True)
    secret.touch(mode=0o600)
    secret.write_bytes(secrets.token_bytes(32))
    return LinkConfig(
        listen=settings.fleet_listen,
        certificate=str(settings.tls_cert),
        key=str(settings.tls_key),
        database=str(folder / "flower.db"),
        secret=str(secret),
        home=str(folder / "home"),
    )


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
    link = Link(config, opened.workspace.folder.resolve() / "fleet" / "flower.log")
    secret = Path(config.secret).read_bytes()
    superlink: client.Superlink | None = None
    driver: Driver | None = None
    let_in: dict[str, str] = {}
    try:
        while not stopped.is_set():
            try:
                if not link.is_up or superlink is None or driver is None:
                    link.stop()
                    link.start()
                    if driver is not None and superlink is not None:
                        driver.lose_runs()
                        superlink.close()
                    superlink = client.Superlink(link.inner, secret)
                    driver = Driver(opened, superlink.begin, clock=clock, ask_again_s=ask_again_s)
                    on_ready(link.outer)
                    let_in = {}
                let_in = _let_in(Fleet(opened.registry), superlink, let_in)
                if (due := start_due(opened, now=clock())) is not None:
                    _log.info("evaluation begins", campaign=due.number, candidate=due.candidate)
                driver.step()
            except httpx.HTTPError as error:
                _log.warning("flower does not answer", error=type(error).__name__)
                if driver is not None:
                    driver.lose_runs()
            except GreylagError as error:
                _log.warning("waiting", code=error.code.name, message=error.message)
            stopped.wait(interval_s)
    finally:
        if driver is not None and superlink is not None:
            driver.lose_runs()
            superlink.close()
        link.stop()


def _let_in(fleet: Fleet, superlink: client.Superlink, before: dict[str, str]) -> dict[str, str]:
    """Make Flower's list of keys equal to the registry's, if that changed since, and return the registry's."""
    nodes = fleet.nodes()
    ours = {node.public: node.state for node, _ in nodes}
    if ours == before:
        return ours
    theirs = {node.public_key.decode(): node for node in superlink.nodes()}
    for node, name in nodes:
        if node.state == "active" and node.public not in theirs:
            superlink.register(node.public, name)
            _log.info("node let in", contributor=name)
    for public, known in theirs.items():
        if known.status != "unregistered" and ours.get(public) != "active":
            superlink.unregister(known.node_id)
            _log.info("node shut out", contributor=known.name)
    return ours


def _await(port: int) -> None:
    for _ in range(int(START_S / 0.1)):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            threading.Event().wait(0.1)
    raise Unavailable(Code.BUSY, "Flower's server does not come up.", "It is tried again.")
