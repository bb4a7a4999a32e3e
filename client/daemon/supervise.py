"""The daemon itself: ties its node to the contributor, keeps two children alive, and stops what overruns.

The SuperNode talks to the coordinator's SuperLink and knows nothing of the data. The executor knows the data
and talks to the SuperNode, on loopback, with a secret. Either may die and comes back; the daemon imports neither
Flower nor torch, so there is little in it that could die.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from client import identity as keys
from client import settings as client_settings
from client.daemon.place import WORKING, Place
from client.daemon.policy import read_policy
from protocol.channel import DEADLINE_S, connect
from protocol.errors import Code, Refused, Unavailable
from protocol.node import bind
from protocol.release import timestamp
from protocol.v1.intake_pb2 import BindRequest, EnrolRequest
from protocol.v1.intake_pb2_grpc import IntakeStub

LOOK_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_STOP_S = 15.0
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Flower asks nothing of the internet."""
_PASSING = (Code.KEY_PENDING, Code.CLOCKS_APART)
"""Refusals that somebody may be seeing to."""
_PRIVATE = ("GREYLAG_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Beginnings of variables that the SuperNode is not told."""


class Child:
    """A process that is started again whenever it ends.

    Args:
        name: What it is called in the log.
        command: Its command line.
        environment: All of its environment.
        log: File that its talk is appended to.
        say: Writes a line for the contributor.
    """

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path, say: Callable[[str], None]
    ) -> None:
        self._name, self._command, self._environment = name, command, dict(environment)
        self._log, self._say = log, say
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s, self._not_before, self._started = FIRST_PAUSE_S, 0.0, 0.0
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process number while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def look(self) -> None:
        """Start the child if it does not run, with growing pauses while it keeps ending at once."""
        now = time.monotonic()
        if self._process is not None:
            if self._process.poll() is None:
                return
            lived = now - self._started
            self._say(f"the {self._name} ended with status {self._process.returncode} after {lived:.0f} s")
            self._close()
            self._pause_s = FIRST_PAUSE_S if lived > LONGEST_PAUSE_S else min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._not_before = now + self._pause_s
        if now < self._not_before:
            return
        with self._log.open("ab") as talk:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                self._command, env=self._environment, stdin=subprocess.PIPE, stdout=talk, stderr=talk,
                start_new_session=True,
            )  # fmt: skip
        self._started, self.starts = now, self.starts + 1
        self._say(f"the {self._name} runs as process {self._process.pid}")

    def stop(self, *, at_once: bool = False) -> None:
        """End the child."""
        if self._process is None:
            return
        if at_once:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not at_once:
            self._close()

    def _close(self) -> None:
        pipe: IO[bytes] | None = self._process.stdin if self._process is not None else None
        if pipe is not None:
            pipe.close()
        self._process = None


class Daemon:
    """Binds, watches, stops.

    Args:
        place: The daemon's corner of the workspace.
        talk: Says a line to whoever started the daemon.
    """

    def __init__(self, place: Place, talk: Callable[[str], None]) -> None:
        self._place, self._talk = place, talk
        self._children: tuple[Child, ...] = ()
        self._fleet = ""

    def run(self, stopped: threading.Event) -> None:
        """Work until told to stop.

        Raises:
            Refused: What the coordinator refuses the node with, or a fault of settings or policy.
        """
        settings = client_settings.read(self._place.workspace.settings_file)
        read_policy(self._place.policy)
        self._bind(settings, stopped)
        if stopped.is_set():
            return
        self._children = self._make_children(settings)
        notify("READY=1\nSTATUS=connected to " + self._fleet)
        try:
            while not stopped.wait(LOOK_S):
                for child in self._children:
                    child.look()
                self._stop_overrun()
                self._write_status("running")
                notify("WATCHDOG=1")
        finally:
            notify("STOPPING=1")
            for child in self._children:
                child.stop()
            self._write_status("stopped")
            self.say("stopped")

    def say(self, sentence: str) -> None:
        """Write a line into the log, and to whoever started the daemon."""
        with self._place.log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {sentence}\n")
        self._talk(sentence)

    def _bind(self, settings: client_settings.ClientSettings, stopped: threading.Event) -> None:
        """Tie the node's key to the contributor's, as soon as the coordinator can be reached."""
        node = self._place.prepare()
        workspace = self._place.workspace
        pool = workspace.pool(settings.pool_key)
        identity = keys.load(workspace.root / settings.key)
        pause_s = FIRST_PAUSE_S
        while not stopped.is_set():
            envelope = bind(pool.digest, identity, node, timestamp(datetime.now(UTC)))
            try:
                with connect(settings.coordinator, settings.ca) as channel:
                    intake = IntakeStub(channel)
                    enrolment = EnrolRequest(envelope=workspace.enrolment_file.read_bytes())
                    intake.Enrol(enrolment, timeout=DEADLINE_S)
                    self._fleet = intake.Bind(BindRequest(envelope=envelope), timeout=DEADLINE_S).fleet
            except Unavailable as error:
                self.say(f"{error.message} Trying again.")
            except Refused as error:
                if error.code not in _PASSING:
                    raise
                self.say(f"{error.message} {error.hint} Trying again.")
            else:
                self.say(f"bound to {settings.name}; connecting to {self._fleet}")
                return
            stopped.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _make_children(self, settings: client_settings.ClientSettings) -> tuple[Child, Child]:
        port, place = _free_port(), self._place
        quiet = {**_QUIET, "FLWR_HOME": str(place.home)}
        unknowing = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
        node = [
            sys.executable, "-m", "client.daemon.node", "--superlink", self._fleet,
            "--auth-supernode-private-key", str(place.node_key), "--isolation", "process",
            "--superexec-auth-secret-file", str(place.secret), "--host", "127.0.0.1", "--port", str(port),
            *(["--root-certificates", str(settings.ca)] if settings.ca else []),
        ]  # fmt: skip
        executor = [sys.executable, "-m", "client.daemon.executor", str(place.workspace.root.resolve()), str(port)]
        return (
            Child("node", node, unknowing | quiet, place.flower_log, self.say),
            Child("executor", executor, {**os.environ, **quiet}, place.flower_log, self.say),
        )

    def _stop_overrun(self) -> None:
        working = self._place.note(WORKING)
        if not working:
            return
        limit_s = 60 * read_policy(self._place.policy).limits.max_minutes
        if time.time() - working["since"] > limit_s:
            name = f"campaign-{working['campaign']}"
            self._place.write_note(name, self._place.note(name) | {"overran": True, "state": "stopped"})
            self._place.write_note(WORKING, {})
            self.say(f"campaign {working['campaign']} took longer than {limit_s / 60:g} minutes and was stopped")
            self._children[1].stop(at_once=True)

    def _write_status(self, state: str) -> None:
        node, executor = self._children
        self._place.write_note(
            "status",
            {
                "state": state, "pid": os.getpid(), "at": timestamp(datetime.now(UTC)), "fleet": self._fleet,
                "node": node.pid, "executor": executor.pid, "restarts": node.starts + executor.starts - 2,
            },
        )  # fmt: skip


@contextmanager
def exclusive(place: Place) -> Iterator[None]:
    """Be the only daemon of a workspace.

    Raises:
        Refused: `WORKSPACE_BUSY`.
    """
    place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with FileLock(place.lock, timeout=0):
            yield
    except Timeout as error:
        raise Refused(
            Code.WORKSPACE_BUSY,
            f"A daemon of {place.workspace.root.resolve()} runs already.",
            "See: greylag-client daemon --status",
        ) from error


def status(place: Place) -> dict[str, Any]:
    """Tell how a daemon stands, for `daemon --status`."""
    found = place.note("status")
    state = found.get("state", "never started")
    if state == "running" and not _alive(found["pid"]):
        state = "killed"
    return {
        "schema": 1, "state": state, "fleet": found.get("fleet", ""), "at": found.get("at", ""),
        "restarts": found.get("restarts", 0), "working": place.note(WORKING) or None, "campaigns": place.asked(),
    }  # fmt: skip


def notify(message: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
