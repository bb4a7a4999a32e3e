import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from filelock import Timeout

from client.daemon import child_process as children
from client.daemon import supervisor
from client.daemon.child_process import Child
from client.daemon.policy import check_data, write_policy
from client.daemon.state import DaemonFolder
from client.daemon.supervisor import Daemon, exclusive, notify, status
from protocol.errors import Code, Refused
from tests import factories
from tests.client.conftest import Cli, Site, make_site
from tests.client.fake_coordinator import FakeCoordinator, serving


@pytest.fixture
def place(site: Site) -> DaemonFolder:
    place = DaemonFolder(site.workspace)
    place.prepare()
    return place


def sleeper(code: str) -> Callable[[], list[str]]:
    return lambda: [sys.executable, "-c", code]


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_child_that_dies_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.01)
    said: list[str] = []
    child = Child("node", sleeper("input()"), dict(os.environ), tmp_path / "log", said.append)
    child.look()
    first = child.pid
    assert first is not None
    os.kill(first, 9)
    wait(lambda: child.pid is None)

    def back() -> bool:
        child.look()
        return child.pid is not None

    wait(back)
    assert child.starts == 2
    child.stop()
    assert child.pid is None
    assert "the node ended with status -9" in said[1]


def test_a_child_that_keeps_dying_is_given_time(tmp_path: Path) -> None:
    child = Child("node", sleeper(""), dict(os.environ), tmp_path / "log", lambda _: None)
    child.look()
    wait(lambda: child.pid is None)
    for _ in range(5):
        child.look()
    assert child.starts == 1


def test_a_daemon_that_was_killed_is_told_from_one_that_runs(place: DaemonFolder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    place.write_note("status", {"state": "running", "pid": gone.pid, "born": 1.0})
    assert status(place)["state"] == "killed"
    here = {"state": "running", "pid": os.getpid(), "born": psutil.Process().create_time()}
    place.write_note("status", here)
    assert status(place)["state"] == "running"
    place.write_note("status", here | {"born": here["born"] - 1})  # the number is another's now
    assert status(place)["state"] == "killed"
    place.write_note("status", {"state": "running"})  # as an older version wrote it
    assert status(place)["state"] == "killed"


def test_a_daemon_that_belongs_to_another_account_is_seen(place: DaemonFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_yours(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    place.write_note("status", {"state": "running", "pid": 1, "born": psutil.Process(1).create_time()})
    monkeypatch.setattr(os, "kill", not_yours)
    assert status(place)["state"] == "running"


def test_there_is_one_daemon_a_workspace(place: DaemonFolder) -> None:
    with exclusive(place), pytest.raises(Refused) as refused, exclusive(place):
        pass
    assert refused.value.code is Code.WORKSPACE_BUSY


def test_a_fault_under_the_lock_is_told_as_what_it_is(place: DaemonFolder) -> None:
    with pytest.raises(Timeout), exclusive(place):
        raise Timeout("another.lock")
    with exclusive(place):
        pass  # and the lock is free again


def test_a_workspace_that_cannot_be_written_is_told(place: DaemonFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "daemon")

    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(Refused) as refused, exclusive(place):
        pass
    assert refused.value.code is Code.SETTINGS_INVALID


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notify("READY=1")  # nobody asked
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_the_node_is_bound_and_its_child_is_told_nothing_of_the_data(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_KEY_PASSPHRASE", "")
    monkeypatch.setenv("HF_TOKEN", "token")
    fake = FakeCoordinator(site.pool, site.operator)
    with serving(fake) as address:
        here = make_site(tmp_path / "here", site.base, site.pool, site.operator, address)
        monkeypatch.delenv("GREYLAG_KEY_PASSPHRASE")
        place = DaemonFolder(here.workspace)
        place.prepare()
        write_policy(place.policy, here.data)
        started: list[tuple[list[str], dict[str, str]]] = []
        real = subprocess.Popen

        def popen(command: list[str], **options: object) -> object:
            started.append((command, options["env"]))  # type: ignore[arg-type]
            return real([sys.executable, "-c", "input()"], **options)  # type: ignore[call-overload]

        monkeypatch.setattr(subprocess, "Popen", popen)
        monkeypatch.setattr(supervisor, "LOOK_S", 0.02)
        monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.01)
        stopped = threading.Event()
        daemon = Daemon(place, lambda _: None)
        thread = threading.Thread(target=daemon.run, args=(stopped,), daemon=True)
        thread.start()
        wait(lambda: place.note("status").get("state") == "running")
        assert status(place)["state"] == "running"
        port = place.port()
        with socket.create_server(("127.0.0.1", port)):  # somebody takes the port while the node is away
            pid = daemon._children[0].pid
            assert pid is not None
            os.kill(pid, 9)
            wait(lambda: len(started) == 3)
        again = started.pop()[0]
        assert place.port() == int(again[again.index("--port") + 1]) != port
        stopped.set()
        thread.join(20)
    assert fake.calls == ["Enrol", "Bind"] * 2  # once more when the node had ended
    assert list(fake.nodes) == [here.contributor.public.hex]
    (node, told), (executor, _) = started
    assert str(here.data) not in " ".join(node) + " ".join(told.values())
    assert not [name for name in told if name.startswith(("GREYLAG_", "HF_TOKEN"))]
    assert (told["FLWR_TELEMETRY_ENABLED"], told["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert node[node.index("--isolation") + 1] == "process"
    assert executor[1:3] == ["-m", "client.daemon.executor"]
    assert status(place)["state"] == "stopped"


def test_the_node_is_bound_to_the_pool_as_it_stands_now(tmp_path: Path, site: Site) -> None:
    fake = FakeCoordinator(site.pool, site.operator)
    with serving(fake) as address:
        here = make_site(tmp_path / "here", site.base, site.pool, site.operator, address)
        place = DaemonFolder(here.workspace)
        write_policy(place.policy, here.data)
        node, daemon = place.prepare(), Daemon(place, lambda _: None)
        assert daemon._introduced(node)
        fake.pool = factories.make_pool(site.base, site.operator)
        here.workspace.pool_file.write_bytes(fake.pool.envelope)
        assert daemon._introduced(node)
    assert fake.calls == ["Enrol", "Bind"] * 2


@pytest.fixture
def daemon(place: DaemonFolder, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Daemon, list[str]]]:
    """A daemon at work whose children sleep, and what it says; nobody is where it connects to."""
    monkeypatch.setattr(supervisor, "LOOK_S", 0.02)
    monkeypatch.setattr(supervisor, "LOOK_AT_FLEET_S", 0.02)
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.01)
    write_policy(place.policy, site.data)
    said: list[str] = []
    daemon = Daemon(place, said.append)
    sleepers = [
        Child(name, sleeper("input()"), dict(os.environ), place.flower_log, daemon.say) for name in ("node", "executor")
    ]
    monkeypatch.setattr(daemon, "_bind", lambda *_: setattr(daemon, "_fleet", "127.0.0.1:1"))
    monkeypatch.setattr(daemon, "_make_children", lambda: tuple(sleepers))
    stopped = threading.Event()

    def run() -> None:
        try:
            daemon.run(stopped)
        except Refused as error:
            said.append(f"ended: {error}")

    thread = threading.Thread(target=run)
    thread.start()
    wait(lambda: status(place)["state"] == "running")
    yield daemon, said
    stopped.set()
    thread.join(20)
    assert not thread.is_alive()


def told(said: list[str], part: str) -> int:
    return sum(part in line for line in said)


def test_what_the_executor_writes_is_shown_and_a_fleet_that_is_away_is_told_once(
    daemon: tuple[Daemon, list[str]], place: DaemonFolder
) -> None:
    _, said = daemon
    place.say("campaign 7 (train): begun")
    wait(lambda: told(said, "campaign 7 (train): begun") == 1)
    wait(lambda: told(said, "127.0.0.1:1 does not answer: Connection refused; trying again") == 1)
    wait(lambda: "does not answer" in status(place)["why"])
    time.sleep(0.2)
    assert told(said, "does not answer") == 1


def test_the_daemon_outlives_a_full_disk_and_says_so_once(
    daemon: tuple[Daemon, list[str]], place: DaemonFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _, said = daemon
    with monkeypatch.context() as patch:
        patch.setattr(DaemonFolder, "write_note", full)
        wait(lambda: told(said, "The disk is full") == 1)
        time.sleep(0.2)
    place.write_note("status", {})
    wait(lambda: place.note("status").get("state") == "running")
    assert told(said, "The disk is full") == 1


def test_a_policy_that_is_broken_meanwhile_is_told_and_stops_nothing(
    daemon: tuple[Daemon, list[str]], place: DaemonFolder
) -> None:
    _, said = daemon
    text = place.policy.read_text()
    place.policy.write_text("data =")
    place.write_note("working", {"campaign": 3, "kind": "train", "since": time.time()})
    wait(lambda: told(said, "is not TOML") == 1)
    place.policy.write_text(text)
    wait(lambda: "TOML" not in status(place)["why"])


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (Code.KEY_REVOKED, "ended: KEY_REVOKED: So it is. Do this."),
        (Code.CLOCKS_APART, "So it is. Do this. Trying again."),
    ],
)
def test_when_the_node_ends_the_coordinator_is_asked_why(
    daemon: tuple[Daemon, list[str]], monkeypatch: pytest.MonkeyPatch, code: Code, sentence: str
) -> None:
    def refuse(*_: object) -> None:
        raise Refused(code, "So it is.", "Do this.")

    working, said = daemon
    monkeypatch.setattr(supervisor, "connect", refuse)
    pid = working._children[0].pid
    assert pid is not None
    os.kill(pid, 9)
    wait(lambda: told(said, sentence) == 1)


def test_a_campaign_that_overruns_is_stopped(place: DaemonFolder, site: Site, tmp_path: Path) -> None:
    place.policy.write_text(f'data = "{site.data}"\n[limits]\nmax_minutes = 1\n')
    said: list[str] = []
    now = 1000.0
    daemon = Daemon(place, said.append, lambda: now)
    sleeping = sleeper("import time; time.sleep(60)")
    children = [Child(name, sleeping, dict(os.environ), tmp_path / "log", said.append) for name in ("node", "executor")]
    daemon._children = tuple(children)
    for child in children:
        child.look()
    place.write_note("working", {"campaign": 3, "kind": "train", "since": time.time() - 3600})  # a clock that was set
    for _ in range(3):
        daemon._stop_overrun()
        now += 29
    assert children[1].pid is not None
    place.write_note("working", {"campaign": 4, "kind": "train", "since": time.time()})  # another has its own minute
    for _ in range(3):
        daemon._stop_overrun()
        now += 29
    assert children[1].pid is not None
    now += 29
    daemon._stop_overrun()
    assert children[0].pid is not None
    assert not children[1].pid
    assert place.note("campaign-4")["overran"]
    assert "overran" not in place.note("campaign-3")
    for child in children:
        child.stop()


def test_a_machine_that_sleeps_does_not_work(place: DaemonFolder, site: Site) -> None:
    place.policy.write_text(f'data = "{site.data}"\n[limits]\nmax_minutes = 5\n')
    now = 1000.0
    daemon = Daemon(place, lambda _: None, lambda: now)
    place.write_note("working", {"campaign": 3, "kind": "train", "since": time.time()})
    daemon._stop_overrun()
    for _ in range(4):
        now += 8 * 3600.0  # the lid is closed each night
        daemon._stop_overrun()  # else it would reach for children, of whom there are none
    assert place.note("working")


def test_a_person_asks_and_decides(site: Site, cli: Cli) -> None:
    place = ("-w", site.workspace.root)
    code, out, _ = cli("daemon", "--status", *place)
    assert code == 0
    assert "never started" in out
    code, _, err = cli("daemon", "--allow", 3, *place)
    assert code == Code.CAMPAIGN_UNKNOWN.fate.exit
    assert "No campaign 3 has asked for anything here." in err
    corner = DaemonFolder(site.workspace)
    for number in (3, 4):
        corner.write_note(f"campaign-{number}", {"number": number, "kind": "train", "order": "1" * 64})
    code, _, err = cli("daemon", "--allow", 3, *place)
    assert code == 0
    assert "Campaign 3 (train) is allowed" in err
    assert cli("daemon", "--decline", 4, *place)[0] == 0
    asked = DaemonFolder(site.workspace).asked()
    assert [(note["number"], note["allowed"]) for note in asked] == [(3, True), (4, False)]
    code, out, _ = cli("daemon", "--status", "--json", *place)
    assert code == 0
    assert '"schema": 1' in out


def test_a_person_reads_what_waits_for_whom(site: Site, cli: Cli) -> None:
    corner = DaemonFolder(site.workspace)
    waits = {"kind": "train", "allowed": None, "state": "waits", "why": "you have to allow or decline it"}
    corner.write_note("campaign-5", {"number": 5, "until": "2126-11-22T12:00:00Z", **waits})
    corner.write_note("campaign-4", {"number": 4, "until": "2020-11-22T12:00:00Z", **waits})
    full = {**waits, "why": "STORAGE_FULL: The disk is full."}
    corner.write_note("campaign-6", {"number": 6, "until": "2126-11-22T12:00:00Z", **full})
    code, out, err = cli("daemon", "--status", "-w", site.workspace.root)
    assert code == 0
    assert "campaign 6 (train) waits: STORAGE_FULL" in out
    assert "--allow 6" not in err
    assert "campaign 5 (train) waits: you have to allow or decline it" in out
    assert "campaign 4 (train) over" in out
    assert f"greylag-client daemon -w {site.workspace.root} --allow 5" in err
    assert "--allow 4" not in err


def test_the_private_file_is_named_once(site: Site, cli: Cli, tmp_path: Path) -> None:
    root = site.workspace.root
    code, _, err = cli("daemon", "-w", root, "--data", tmp_path / "gone.jsonl")
    assert code == Code.DATA_UNREADABLE.fate.exit
    assert not (root / "daemon.toml").exists()
    write_policy(root / "daemon.toml", site.data)
    (tmp_path / "other.jsonl").touch()
    code, _, err = cli("daemon", "-w", root, "--data", tmp_path / "other.jsonl")
    assert code == Code.SETTINGS_INVALID.fate.exit
    assert f"names the private file {site.data}, not {tmp_path / 'other.jsonl'}" in err
    check_data(root / "daemon.toml", site.data)


def test_a_secret_that_was_left_half_written_is_not_used(place: DaemonFolder) -> None:
    place.secret.write_bytes(b"")
    place.prepare()
    assert len(place.secret.read_bytes()) == 32
    assert place.secret.stat().st_mode & 0o077 == 0


def test_a_daemon_without_a_policy_says_so(site: Site, cli: Cli) -> None:
    code, _, err = cli("daemon", "-w", site.workspace.root)
    assert code == Code.SETTINGS_INVALID.fate.exit
    assert f"greylag-client daemon -w {site.workspace.root} --data FILE" in err
