"""The coordinator's keys over time, by real processes: split, replaced, stolen, restored, put under a passphrase."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from client.submission import log, submit, upload
from client.submission.join import enrol
from client.workspace.paths import ClientWorkspace
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.adapters import Shape
from protocol.documents import Duty, Pool, timestamp
from protocol.errors import Code, GreylagError, Refused
from protocol.fleet.campaign import Order, read_order, sign_order
from protocol.keys.passphrase import NEW_PASSPHRASE_VARIABLE, PASSPHRASE_VARIABLE
from protocol.release import ReleaseSpec, read_release, sign_release
from protocol.signing import Identity
from protocol.spec import Routing
from protocol.wire.grpc_client import connect
from router.follow.pull import pull
from router.follow.witness import Witness
from router.follow.workspace import open_mirror
from tests import factories
from tests.coordinator.cli.test_main import Program, program, refused
from tests.coordinator.cli.test_processes import make_workspace, serving_at
from tests.coordinator.workspace.test_roles import now, working

__all__ = ["program"]


def publish(place: CoordinatorWorkspace) -> int:
    """Have the registry publish a release without experts."""
    with working(place) as open_:
        row = open_.registry.releases.find()
        last = read_release(row.envelope, open_.pool) if row else None
        spec = ReleaseSpec(
            pool=open_.pool.digest, number=last.spec.number + 1 if last else 1, previous=last.digest if last else None,
            experts=(), routing=Routing(), created=timestamp(now()), expires=timestamp(now() + timedelta(days=30)),
            checkpoint=open_.checkpoints.newest().text(),
        )  # fmt: skip
        open_.registry.releases.publish(sign_release(spec, open_.signer(Duty.RELEASES)), now=now())
        return spec.number


class Town:
    """A pool, a contributor who comes seldom, a router and a witness."""

    def __init__(self, folder: Path, program: Program) -> None:
        self.folder, self.program = folder, program
        self.place, self.pool = make_workspace(folder / "pool", {"m": Shape(d_in=8, d_out=8)})
        with self.place.settings.open("a") as settings:
            settings.write("first_bundles = 9\n")
        self.ada, self.home = Identity.generate(), folder / "ada"
        self.home.mkdir()
        self.ada.save(self.home / "contributor.key")
        (self.home / "pool.dsse.json").write_bytes(self.pool.envelope)
        (self.home / "client.toml").write_text(
            f'coordinator = "127.0.0.1:1"\npool_key = "{self.pool.spec.coordinator}"\nbase = "nowhere"\nname = "ada"\n'
        )

    def rotate(self, *flags: str, version: int = 2) -> Path:
        file = self.folder / f"root-{version}.json"
        assert self.program(self.place, "roles", "draft-root", str(file), *flags) == 0
        assert self.program(self.place, "roles", "publish", str(file)) == 0
        return file

    def at(self, address: str) -> ClientWorkspace:
        return ClientWorkspace(self.home, coordinator=address)

    def submit(self, address: str, name: str) -> None:
        home = self.at(address)
        bundle = factories.make_bundle(self.folder / name, self.pool, self.ada, name=name)
        introduction = enrol(home.pool, "ada", self.ada, now())
        submit.send(home, bundle, introduction, upload.Coordinator(address), lambda _: None)

    def verified(self, address: str) -> list[str]:
        found = log.verify(self.at(address))
        return sorted(bundle.name for bundle in found.bundles if bundle.fault is None)

    def follow(self, address: str, node: str = "node") -> int:
        return pull(self.folder / node, address).release.spec.number

    def witness(self, address: str) -> Code:
        # It is not known to the pool; what it signs for must continue what it has seen all the same.
        with pytest.raises(Refused) as unknown:
            Witness(self.folder / "witness", "w.example.org/1").look(address, clock=now)
        return unknown.value.code


@pytest.fixture
def town(tmp_path: Path, program: Program) -> Town:
    return Town(tmp_path, program)


def order(pool: Pool) -> Order:
    return Order(
        pool=pool.digest, number=1, kind="info", created=timestamp(now()), expires=timestamp(now() + timedelta(hours=1))
    )


def code_of(error: pytest.ExceptionInfo[GreylagError]) -> Code:
    return error.value.code


def test_keys_change_and_nobody_begins_anew(town: Town, tmp_path: Path) -> None:
    """Split, the pool's key put away, an old client comes back; then a thief with the old key, and a restored copy."""
    publish(town.place)
    with serving_at(town.place) as (_, address):
        town.submit(address, "one")
        assert town.witness(address) is Code.KEY_UNKNOWN
        assert (town.verified(address), town.follow(address)) == (["one"], 1)
        assert town.program(town.place, "roles", "draft-root", str(tmp_path / "early.json"), "--new-key", "log") == 0
        assert town.program(town.place, "roles", "publish", str(tmp_path / "early.json")) == 75, "serve has the old key"
        refused(town.program, Code.WORKSPACE_BUSY)
    thief = CoordinatorWorkspace(shutil.copytree(town.place.folder, tmp_path / "thief"))
    old = Identity.load(town.place.key)

    second = town.rotate("--new-keys")
    shown = town.program.json(town.place, "roles", "show")
    assert len({*shown["duties"].values(), town.pool.spec.coordinator}) == 4, "each duty has a key of its own"
    town.place.key.rename(tmp_path / "coordinator.key")
    assert publish(town.place) == 2
    with serving_at(town.place) as (_, address):
        town.submit(address, "two")
        assert town.witness(address) is Code.KEY_UNKNOWN
        assert (town.verified(address), town.follow(address)) == (["one", "two"], 2)
        with connect(address) as channel:
            pool = town.at(address).keep_up(channel)
    with working(town.place) as open_:
        asked = sign_order(order(pool), open_.signer(Duty.ORDERS))
    assert read_order(asked, pool, now=now()).number == 1
    with pytest.raises(Refused):
        read_order(sign_order(order(pool), old), pool, now=now())
    assert open_mirror(tmp_path / "node").release.spec.number == 2, "what is on the disk is read without a network"

    publish(thief)
    with serving_at(thief) as (_, address):
        assert town.witness(address) is Code.BAD_SIGNATURE
        for ask in (town.follow, town.verified):
            with pytest.raises(GreylagError) as caught:
                ask(address)
            assert code_of(caught) in (Code.BAD_SIGNATURE, Code.RELEASE_ROLLBACK), "the old key signs for nobody"

    # A copy of the folder of roles from before the rotation is restored: the root is published again, from a reader's.
    keys = {path.name: path.read_bytes() for path in town.place.roles.glob("*-2.key")}
    shutil.rmtree(town.place.roles)
    shutil.copytree(thief.folder / "roles", town.place.roles)
    assert town.program(town.place, "experts", "ls") == Code.KEY_UNREADABLE.fate.exit, "the pool's key is elsewhere"
    kept = town.home / "roots" / "2.json"
    assert kept.read_bytes() == second.read_bytes()
    assert town.program(town.place, "roles", "publish", str(kept)) == Code.KEY_UNREADABLE.fate.exit
    for name, content in keys.items():
        (town.place.roles / name).write_bytes(content)
    assert town.program(town.place, "roles", "publish", str(kept)) == 0
    with serving_at(town.place) as (_, address):
        assert (town.verified(address), town.follow(address)) == (["one", "two"], 2)


def test_a_reader_whom_a_thief_has_shown_another_log_goes_on(town: Town, tmp_path: Path) -> None:
    """The lost key is replaced by another root; what the old one signed against the log is forgotten, and kept."""
    publish(town.place)
    town.rotate("--new-key", "log")
    thief = CoordinatorWorkspace(shutil.copytree(town.place.folder, tmp_path / "thief"))
    for _ in range(3):
        publish(thief)
    publish(town.place)
    with serving_at(thief) as (_, address):
        assert town.verified(address) == []
    with serving_at(town.place) as (_, address), pytest.raises(Refused) as fork:
        town.verified(address)
    assert fork.value.code in (Code.LOG_FORK, Code.LOG_ROLLBACK)
    (town.place.roles / "log-2.key").unlink()
    assert town.program(town.place, "experts", "ls") == Code.KEY_UNREADABLE.fate.exit
    town.rotate("--new-key", "log", version=3)
    with serving_at(town.place) as (_, address):
        assert town.verified(address) == []
        assert (town.home / "log-contradiction.txt").is_file()
        town.submit(address, "one")
        assert town.verified(address) == ["one"]
    with serving_at(thief) as (_, address), pytest.raises(Refused) as caught:
        town.verified(address)
    assert caught.value.code is Code.BAD_SIGNATURE


def test_a_passphrase_and_an_unattended_start(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set, wrong, right, keys made afterwards, taken off again; an interrupted change is repeated."""
    for name in (PASSPHRASE_VARIABLE, NEW_PASSPHRASE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert town.program(town.place, "keys", "protect") == Code.PASSPHRASE.fate.exit
    refused(town.program, Code.PASSPHRASE)
    monkeypatch.setenv(NEW_PASSPHRASE_VARIABLE, "geese")
    assert town.program(town.place, "keys", "protect") == 0
    assert {path.stat().st_mode & 0o777 for path in town.place.roles.glob("*.key")} == {0o600}
    for given in (None, "ducks"):
        monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
        if given:
            monkeypatch.setenv(PASSPHRASE_VARIABLE, given)
        for verb in (("experts", "ls"), ("serve",), ("worker", "--once")):
            assert town.program(town.place, *verb) == Code.PASSPHRASE.fate.exit
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "geese")
    publish(town.place)
    with serving_at(town.place) as (_, address):
        assert town.follow(address) == 1
    town.rotate("--new-keys")
    rows = town.program.json(town.place, "keys", "ls")["keys"]
    assert all(row["passphrase"] for row in rows), "what is made afterwards is put under it, too"
    assert {use for row in rows for use in row["signs"]} == {
        "pool", "root", "targets", "snapshot", "timestamp", "log", "orders", "releases",
    }  # fmt: skip
    assert town.program(town.place, "keys", "ls") == 0
    monkeypatch.setenv(NEW_PASSPHRASE_VARIABLE, "swans")
    one = town.place.roles / "root.key"
    content = Identity.load(one, "geese").private_bytes("swans")
    one.write_bytes(content)
    assert town.program(town.place, "keys", "protect") == 0, "a run that was interrupted after one key"
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "swans")
    monkeypatch.setenv(NEW_PASSPHRASE_VARIABLE, "")
    assert town.program(town.place, "keys", "protect") == 0
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    assert publish(town.place) == 2
    assert PASSPHRASE_VARIABLE not in os.environ


def test_keys_behind_signers_from_the_founding_on(town: Town, tmp_path: Path, program: Program, t5_base: Path) -> None:
    """The pool's key and, later, that of the log are named by URIs; the workspace holds neither."""
    held = {name: Identity.generate() for name in ("pool", "log")}
    for name, identity in held.items():
        identity.save(tmp_path / f"{name}.pem")
    place, behind = CoordinatorWorkspace(tmp_path / "w"), {
        name: f"{identity.public.hex}=file2:{tmp_path / name}.pem" for name, identity in held.items()
    }  # fmt: skip
    begin = ["init", "--single", "--name", "p", "--base", str(t5_base)]
    assert program(place, *begin, "--signer", "pkcs11") == Code.KEY_TYPE.fate.exit
    assert not place.folder.exists()
    assert program(place, *begin, "--signer", behind["pool"]) == 0
    assert not place.key.exists()
    publish(place)
    file = str(tmp_path / "root.json")
    replace = ["roles", "draft-root", file, "--signer-key", f"log={held['log'].public.hex}"]
    assert program(place, *replace) == 0
    assert program(place, "roles", "publish", file) == Code.KEY_UNREADABLE.fate.exit, "its signer is not named yet"
    place.settings.write_text(
        place.settings.read_text() + f'{held["log"].public.hex} = "file2:{tmp_path / "log"}.pem"\n'
    )
    assert program(place, "roles", "publish", file) == 0
    with serving_at(place) as (_, address):
        assert pull(tmp_path / "node", address).release.spec.number == 1
    (tmp_path / "log.pem").unlink()
    with pytest.raises(Refused) as gone:
        publish(place)
    assert gone.value.code is Code.SETTINGS_INVALID
    for wrong in (["--new-key", "nobody"], ["--signer-key", "targets=1"], ["--signer-key", "log=12"]):
        assert program(place, "roles", "draft-root", file, *wrong) in (
            Code.SETTINGS_INVALID.fate.exit, Code.KEY_TYPE.fate.exit,
        )  # fmt: skip
