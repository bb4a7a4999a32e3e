"""The daemon itself: ties its node to the contributor, keeps two children alive, and stops what overruns.

The SuperNode talks to the coordinator's SuperLink and knows nothing of the data. The executor knows the data
and talks to the SuperNode, on loopback, with a secret. Either may die and comes back; the daemon imports neither
Flower nor torch, so there is little in it that could die.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import psutil

from client.daemon.child_process import FIRST_PAUSE_S, LONGEST_PAUSE_S, Child
from client.daemon.policy import read_policy
from client.daemon.state import PORT, WORKING, DaemonFolder
from client.submission.join import enrol, enrolled
from client.workspace.disk import storage
from client.workspace.paths import ClientWorkspace
from protocol.documents import timestamp
from protocol.errors import Code, GreylagError, Refused, from_os_error
from protocol.files.locks import held
from protocol.fleet.attestation import read_evidence
from protocol.fleet.node_key import NodeKey, bind
from protocol.v1.intake_pb2 import BindRequest, EnrolRequest
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire.grpc_client import DEADLINE_S, connect

LOOK_S, LOOK_AT_FLEET_S, FLEET_ANSWERS_S = 1.0, 30.0, 5.0
LONGEST_LOOK_S = 60.0
"""Whatever lies beyond between two looks was this machine's sleep, in seconds, and nobody worked."""
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


class Daemon:
    """Binds, watches, stops, and talks to whoever started it."""

    def __init__(
        self, place: DaemonFolder, talk: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._place, self._talk, self._clock = place, talk, clock
        self._children: tuple[Child, ...] = ()
        self._fleet = ""
        self._trouble = self._away = ""
        self._look_again = 0.0
        self._work: dict[str, Any] = {}
        self._worked_s, self._looked = 0.0, clock()
        self._shown = place.log.stat().st_size if place.log.exists() else 0

    def run(self, stopped: threading.Event) -> None:
        """Work until told to stop.

        Raises:
            Refused: What the coordinator refuses the node with, or a fault of settings or policy.
        """
        read_policy(self._place.policy)
        node = self._place.prepare()
        self._bind(node, stopped)
        if stopped.is_set():
            self._write_status("stopped")
            return
        self._children = self._make_children()
        notify("READY=1\nSTATUS=bound to " + self._fleet)
        try:
            while not stopped.wait(LOOK_S):
                ended = False
                with self._surviving():
                    ended, _ = [child.look() for child in self._children]
                    self._stop_overrun()
                    self._look_at_fleet()
                    self._write_status("running")
                    self._relay()
                if ended:  # as when its key is let in no more; the coordinator says why
                    self._introduced(node)
                notify("WATCHDOG=1")
        finally:
            notify("STOPPING=1")
            for child in self._children:
                child.stop()
            self.say("stopped")
            with self._surviving():
                self._write_status("stopped")

    def say(self, sentence: str) -> None:
        """Write a line into the log, and to whoever started the daemon."""
        if self._place.say(sentence):
            self._relay()
        else:
            self._talk(sentence)

    def _relay(self) -> None:
        """Show what has come into the log, which the executor writes, too."""
        with self._place.log.open("rb") as file:
            file.seek(self._shown)
            *lines, rest = file.read().decode(errors="replace").split("\n")
            self._shown = file.tell() - len(rest.encode())
        for line in lines:
            self._talk(line)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Say once what is wrong with disk or policy, and go on: somebody may be seeing to it."""
        try:
            yield
        except (OSError, GreylagError) as error:
            sentence = str(error if isinstance(error, GreylagError) else from_os_error(error))
            if sentence != self._trouble:
                self._trouble = sentence
                self.say(sentence)
        else:
            self._trouble = ""

    def _bind(self, node: NodeKey, stopped: threading.Event) -> None:
        """Tie the node's key to the contributor's, as soon as the coordinator can be reached."""
        pause_s = FIRST_PAUSE_S
        while not self._introduced(node):
            if stopped.wait(pause_s):
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self.say(f"bound to {self._place.workspace.settings.name}; connecting to {self._fleet}")

    def _introduced(self, node: NodeKey) -> bool:
        """Tell the coordinator whose node this is, and learn where to connect; say why not, if that may pass.

        Raises:
            Refused: What does not pass.
        """
        workspace = ClientWorkspace(self._place.workspace.root)  # read anew, as the executor does
        identity, pool, now = workspace.identity(), workspace.pool, datetime.now(UTC)
        enrolment = enrolled(workspace, identity.public) or enrol(pool, workspace.settings.name, identity, now)
        shown = read_policy(self._place.policy).attestation  # read anew: evidence may be fresh
        evidence = read_evidence(shown.kind, shown.file) if shown else None
        envelope = bind(pool.digest, identity, node, timestamp(now), evidence)
        try:
            with connect(workspace.settings.coordinator, workspace.settings.ca) as channel:
                intake = IntakeStub(channel)
                intake.Enrol(EnrolRequest(envelope=enrolment), timeout=DEADLINE_S)
                self._fleet = intake.Bind(BindRequest(envelope=envelope), timeout=DEADLINE_S).fleet
        except GreylagError as error:
            if isinstance(error, Refused) and error.code not in _PASSING:
                raise
            self.say(f"{error.message} {error.hint} Trying again.")
            with self._surviving():
                self._write_status("waiting", error.message)
            return False
        return True

    def _look_at_fleet(self) -> None:
        """Say when the fleet stops answering, which the node itself waits out in silence, and when it is back."""
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + LOOK_AT_FLEET_S
        host, _, port = self._fleet.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=FLEET_ANSWERS_S).close()
            trouble = ""
        except OSError as error:
            trouble = f"{self._fleet} does not answer: {error.strerror or type(error).__name__}"
        if trouble != self._away:
            self.say(f"{trouble}; trying again" if trouble else f"{self._fleet} answers again")
            self._away = trouble

    def _make_children(self) -> tuple[Child, Child]:
        place, ca = self._place, self._place.workspace.settings.ca
        quiet = {**_QUIET, "FLWR_HOME": str(place.flower_home)}
        unknowing = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}

        def node() -> list[str]:
            port = _free_port()  # the last one may be somebody else's by now
            place.write_note(PORT, {"port": port})
            return [
                sys.executable, "-m", "client.daemon.supernode", "--superlink", self._fleet,
                "--auth-supernode-private-key", str(place.node_key), "--isolation", "process",
                "--superexec-auth-secret-file", str(place.secret), "--host", "127.0.0.1", "--port", str(port),
                *(["--root-certificates", str(ca)] if ca else []),
            ]  # fmt: skip

        def executor() -> list[str]:
            return [sys.executable, "-m", "client.daemon.executor", str(place.workspace.root.resolve())]

        return (
            Child("node", node, unknowing | quiet, place.flower_log, self.say),
            Child("executor", executor, {**os.environ, **quiet}, place.flower_log, self.say),
        )

    def _stop_overrun(self) -> None:
        now, working = self._clock(), self._place.note(WORKING)
        passed, self._looked = min(now - self._looked, LONGEST_LOOK_S), now
        self._worked_s = self._worked_s + passed if working == self._work else 0.0
        self._work = working
        if not working:
            return
        limit_s = 60 * read_policy(self._place.policy).limits.max_minutes
        if self._worked_s > limit_s:
            name = f"campaign-{working['campaign']}"
            self._children[1].stop(at_once=True)
            self._place.drop_note(WORKING)
            why = f"it took longer than {limit_s / 60:g} minutes"
            self.say(f"campaign {working['campaign']} stopped: {why}")
            self._place.write_note(name, self._place.note(name) | {"overran": True, "state": "stopped", "why": why})

    def _write_status(self, state: str, why: str = "") -> None:
        pids = [child.pid for child in self._children] or [None, None]
        restarts = sum(max(0, child.starts - 1) for child in self._children)
        self._place.write_note(
            "status",
            {
                "state": state, "why": why or self._trouble or self._away, "pid": os.getpid(),
                "born": psutil.Process().create_time(), "at": timestamp(datetime.now(UTC)), "fleet": self._fleet,
                "node": pids[0], "executor": pids[1], "restarts": restarts,
            },
        )  # fmt: skip


@contextmanager
def exclusive(place: DaemonFolder) -> Iterator[None]:
    """Be the only daemon of a workspace.

    Raises:
        Refused: `WORKSPACE_BUSY`, or `SETTINGS_INVALID` where the workspace cannot be written.
        Unavailable: `STORAGE_FULL`.
    """
    busy = f"A daemon of {place.workspace.root.resolve()} runs already."
    with ExitStack() as stack:
        with storage():
            place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(held(place.lock, busy, "See: greylag-client daemon --status"))
        yield


def status(place: DaemonFolder) -> dict[str, Any]:
    """Tell how a daemon stands, for `daemon --status`."""
    found = place.note("status")
    state = found.get("state", "never started")
    if state in ("running", "waiting") and not _is_alive(found):
        state = "killed"
    now = timestamp(datetime.now(UTC))
    campaigns = [
        {**each, "state": "over", "why": ""} if each.get("state") == "waits" and each.get("until", now) < now else each
        for each in place.asked()
    ]
    return {
        "state": state, "why": found.get("why", ""), "fleet": found.get("fleet", ""),
        "at": found.get("at", ""), "restarts": found.get("restarts", 0), "working": place.note(WORKING) or None,
        "campaigns": campaigns,
    }  # fmt: skip


def notify(message: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _is_alive(written: dict[str, Any]) -> bool:
    """Tell whether the process that wrote a status is there, whoever's it is, and no other has its number now."""
    try:
        return bool(psutil.Process(written["pid"]).create_time() == written["born"])
    except (KeyError, psutil.Error):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
