"""Roles of a workspace from founding over releases to lost keys: what readers are shown, by a real coordinator."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from coordinator.workspace.context import Opened, opened
from coordinator.workspace.create import BaseFacts, Founding, found
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.roles import RENEWED
from coordinator.workspace.settings import load
from protocol.documents import Duty, Pool, timestamp
from protocol.errors import Code, Refused
from protocol.release import Release, ReleaseSpec, read_release, sign_release
from protocol.roles.metadata import LIVES, Keys, is_signed
from protocol.signing import Identity
from protocol.spec import Routing
from router.follow.pull import pull
from tests.coordinator.cli.test_main import SHAPES, Program, program, refused
from tests.coordinator.cli.test_processes import BASE, make_workspace, serving_at

__all__ = ["program"]
PEOPLE = ("ada", "bob", "cleo")


def now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def working(workspace: CoordinatorWorkspace) -> Iterator[Opened]:
    with opened(workspace, load(workspace)) as open_:
        open_.roles.check()
        yield open_


def publish(workspace: CoordinatorWorkspace, pool: Pool) -> Release:
    """Have the registry publish a release without experts."""
    with working(workspace) as open_:
        row = open_.registry.releases.find()
        last = read_release(row.envelope, open_.pool) if row else None
        spec = ReleaseSpec(
            pool=pool.digest, number=last.spec.number + 1 if last else 1, previous=last.digest if last else None,
            experts=(), routing=Routing(), created=timestamp(now()), expires=timestamp(now() + timedelta(days=30)),
            checkpoint=open_.checkpoints.newest().text(),
        )  # fmt: skip
        release = sign_release(spec, open_.signer(Duty.RELEASES))
        open_.registry.releases.publish(release, now=now())
        return release


def follow(workspace: CoordinatorWorkspace, node: Path, **contact: Any) -> int:
    """Pull once from a coordinator that runs for as long as that takes."""
    with serving_at(workspace) as (_, address):
        return pull(node, address, **contact).release.spec.number


@pytest.fixture
def single(tmp_path: Path) -> tuple[CoordinatorWorkspace, Pool]:
    return make_workspace(tmp_path / "w", SHAPES)


@pytest.fixture
def people(tmp_path: Path) -> dict[str, Identity]:
    made = {name: Identity.generate() for name in PEOPLE}
    for name, identity in made.items():
        identity.save(tmp_path / f"{name}.key")
    return made


@pytest.fixture
def shared(tmp_path: Path, people: dict[str, Identity]) -> tuple[CoordinatorWorkspace, Pool]:
    """A pool whose root and releases two of three people sign."""
    two = Keys(tuple(identity.public for identity in people.values()), 2)
    workspace, facts = CoordinatorWorkspace(tmp_path / "w"), BaseFacts("nowhere", BASE, "encoder-decoder", SHAPES)
    roles = {Root.type: two, Targets.type: two}
    pool = found(workspace, lambda: facts, name="p", choices={}, settings={}, keys=Founding(roles), now=now())
    return workspace, pool


def test_every_release_is_named_and_a_timestamp_renewed(single: tuple[CoordinatorWorkspace, Pool]) -> None:
    workspace, pool = single
    with working(workspace) as open_, pytest.raises(Refused) as nothing:
        open_.roles.show(Timestamp.type, 0, now=now())
    assert nothing.value.code is Code.RELEASE_UNKNOWN
    for number in (1, 2):
        publish(workspace, pool)
        with working(workspace) as open_:
            root, targets = open_.roles.root(), open_.roles.newest(Targets)
            assert root is not None
            assert targets is not None
            assert targets.signed.version == number
            for part in (targets, open_.roles.newest(Snapshot), open_.roles.newest(Timestamp)):
                assert part is not None
                assert is_signed(part, root.signed)
    with working(workspace) as open_:
        first = open_.roles.show(Timestamp.type, 0, now=now())
        assert open_.roles.show(Timestamp.type, 0, now=now()) == first
        later = now() + RENEWED + timedelta(minutes=1)
        second = open_.roles.show(Timestamp.type, 0, now=later)
        assert json.loads(second)["signed"]["version"] > json.loads(first)["signed"]["version"]
        versions = [open_.roles.newest(Snapshot)]
        open_.roles.show(Timestamp.type, 0, now=now() + LIVES[Snapshot.type] - timedelta(days=5))
        versions.append(open_.roles.newest(Snapshot))
        before, renewed = (each.signed.version if each else 0 for each in versions)
        assert renewed > before
        ahead = open_.roles.newest(Timestamp)
        open_.roles.show(Timestamp.type, 0, now=now())
        mended = open_.roles.newest(Timestamp)
        assert ahead is not None
        assert mended is not None
        assert mended.signed.expires < now() + LIVES[Timestamp.type], "a clock that was ahead is forgotten"
        assert mended.signed.version > ahead.signed.version
        for role, version in (("root", 2), ("targets", 9), ("nobody", 1), ("../../coordinator", 1)):
            with pytest.raises(Refused):
                open_.roles.show(role, version, now=now())


def test_the_story_of_one_machine(program: Program, single: tuple[CoordinatorWorkspace, Pool], tmp_path: Path) -> None:
    """Released, copied, keys stolen and replaced, an old copy of the folder restored: a reader follows all along."""
    (workspace, pool), node = single, tmp_path / "node"
    assert program(workspace, "roles", "show") == 0
    publish(workspace, pool)
    shown = program.json(workspace, "roles", "show")
    assert (shown["named"], shown["newest"]) == (1, 1)
    assert follow(workspace, node, root=shown["root"]) == 1
    stolen = shutil.copytree(workspace.folder, tmp_path / "stolen")

    file = tmp_path / "root-2.json"
    assert program(workspace, "roles", "draft-root", str(file), "--new-keys") == 0
    assert program(workspace, "roles", "publish", str(file)) == 0
    assert program(workspace, "roles", "publish", str(file)) == Code.STATE_CHANGE.fate.exit
    keys = {row["role"]: row["keys"] for row in program.json(workspace, "roles", "show")["roles"]}
    old = {row["role"]: row["keys"] for row in shown["roles"]}
    assert {role for role in keys if keys[role] != old[role]} == {"targets", "snapshot", "timestamp"}
    assert follow(workspace, node) == 1
    publish(workspace, pool)
    assert follow(workspace, node) == 2

    # Who has the old keys shows the folder as it was, with a release of their own in it.
    publish(thief := CoordinatorWorkspace(stolen), pool)
    with pytest.raises(Refused) as refused_:
        follow(thief, node)
    assert refused_.value.code in (Code.BAD_SIGNATURE, Code.RELEASE_ROLLBACK)

    # An operator's own backup of today's folder, restored after more releases, catches up by itself.
    backup = shutil.copytree(workspace.roles, tmp_path / "later")
    publish(workspace, pool)
    assert follow(workspace, node) == 3
    shutil.rmtree(workspace.roles)
    shutil.copytree(backup, workspace.roles)
    with working(workspace) as open_:
        open_.roles.level(now=now() + timedelta(hours=3))
    publish(workspace, pool)
    assert follow(workspace, node) == 4


@dataclass(frozen=True)
class Office:
    """Where people's keys lie, and who types for them."""

    program: Program
    workspace: CoordinatorWorkspace
    folder: Path

    def sign(self, file: Path, *names: str) -> None:
        for name in names:
            assert self.program(None, "roles", "sign", str(file), "--key", str(self.folder / f"{name}.key")) == 0

    def drafted(self, name: str, *signers: str) -> Path:
        """The newest release, drafted and signed."""
        file = self.folder / f"{name}.json"
        assert self.program(self.workspace, "roles", "draft-release", str(file)) == 0
        self.sign(file, *signers)
        return file

    def publishes(self, file: Path) -> int:
        return self.program(self.workspace, "roles", "publish", str(file))


def test_the_story_of_three_people(
    program: Program, shared: tuple[CoordinatorWorkspace, Pool], people: dict[str, Identity], tmp_path: Path
) -> None:
    """Nobody follows before the root is signed, nor a release that two did not sign; who leaves is taken out."""
    (workspace, pool), node = shared, tmp_path / "node"
    office = Office(program, workspace, tmp_path)
    sign, publishes = office.sign, office.publishes
    publish(workspace, pool)
    with pytest.raises(Refused) as early:
        follow(workspace, node)
    assert early.value.code is Code.RELEASE_UNKNOWN
    first = workspace.roles / "root-1.json"
    sign(first, "ada")
    assert publishes(first) == Code.BAD_SIGNATURE.fate.exit
    refused(program, Code.BAD_SIGNATURE)
    sign(first, "cleo")
    assert publishes(first) == 0
    with pytest.raises(Refused):
        follow(workspace, node)

    one = office.drafted("one", "bob")
    assert publishes(one) == Code.BAD_SIGNATURE.fate.exit
    sign(one, "ada")
    assert publishes(one) == 0
    assert follow(workspace, node) == 1

    publish(workspace, pool)
    publish(workspace, pool)
    assert follow(workspace, node) == 1, "two more wait for signatures"
    assert program(workspace, "roles", "show") == 0
    assert "release 3 waits" in program.err
    assert publishes(office.drafted("three", "bob", "cleo")) == 0
    assert follow(workspace, node) == 3
    assert publishes(one) == Code.STATE_CHANGE.fate.exit, "nobody goes back"

    # Bob leaves; Dora comes.
    dora = Identity.generate()
    dora.save(tmp_path / "dora.key")
    keys = [people["ada"].public.hex, people["cleo"].public.hex, dora.public.hex]
    given = [word for key in keys for word in ("--root-key", key, "--release-key", key)]
    second = tmp_path / "root-2.json"
    thresholds = ("--root-threshold", "2", "--release-threshold", "2")
    assert program(workspace, "roles", "draft-root", str(second), *given, *thresholds) == 0
    sign(second, "bob", "dora")
    assert publishes(second) == Code.BAD_SIGNATURE.fate.exit, "one key of the last root is not two"
    sign(second, "ada")
    assert publishes(second) == 0
    publish(workspace, pool)
    four = office.drafted("four", "bob", "ada")
    assert publishes(four) == Code.BAD_SIGNATURE.fate.exit, "Bob has no say any more"
    sign(four, "dora")
    assert publishes(four) == 0
    assert follow(workspace, node) == 4


def test_a_release_that_is_not_here_is_not_signed_for(
    program: Program, shared: tuple[CoordinatorWorkspace, Pool], tmp_path: Path
) -> None:
    workspace, _ = shared
    assert program(workspace, "roles", "draft-release", str(tmp_path / "r.json")) == Code.RELEASE_UNKNOWN.fate.exit
    assert program(workspace, "roles", "draft-root", str(tmp_path / "r.json")) == Code.STATE_CHANGE.fate.exit
    assert program(workspace, "roles", "show") == Code.STATE_CHANGE.fate.exit
    (tmp_path / "r.json").write_text("{}")
    assert program(workspace, "roles", "publish", str(tmp_path / "r.json")) == Code.SPEC_INVALID.fate.exit


def test_a_pool_of_before_is_given_roles(
    program: Program, single: tuple[CoordinatorWorkspace, Pool], tmp_path: Path
) -> None:
    workspace, pool = single
    assert program(workspace, "roles", "show") == 0
    publish(workspace, pool)
    shutil.rmtree(workspace.roles)
    assert program(workspace, "serve") == Code.SCHEMA_MISMATCH.fate.exit
    refused(program, Code.SCHEMA_MISMATCH)
    assert program(workspace, "roles", "found") == Code.SETTINGS_INVALID.fate.exit
    assert program(workspace, "roles", "found", "--single") == 0
    assert "Warning: every key of this pool lies in" in program.err
    assert program(workspace, "roles", "found", "--single") == Code.WORKSPACE_EXISTS.fate.exit
    assert follow(workspace, tmp_path / "node") == 1


@pytest.mark.parametrize(
    "given",
    [
        [], ["--single", "--root-key", "1" * 64], ["--single", "--release-key", "1" * 64],
        ["--root-key", "1" * 64, "--root-threshold", "2"],
    ],
)  # fmt: skip
def test_who_signs_is_said_at_the_founding(program: Program, tmp_path: Path, t5_base: Path, given: list[str]) -> None:
    workspace = CoordinatorWorkspace(tmp_path / "w")
    begin = ["init", "--name", "p", "--base", str(t5_base)]
    assert program(workspace, *begin, *given) == Code.SETTINGS_INVALID.fate.exit
    assert not workspace.folder.exists()
