"""What a bundle answers before anybody lets it in, over a real base."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.cli.output import opened_workspace
from coordinator.policy.lifecycle import State
from coordinator.policy.next_release import next_release
from coordinator.storage.blobs import Store
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.bundle import Bundle
from protocol.documents import Duty, Enrolment, timestamp
from protocol.errors import Code
from protocol.release import ReleasedExpert, read_release, sign_release
from protocol.signing import Identity
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests import factories
from tests.coordinator.cli.test_main import Program, program, refused

__all__ = ["program"]
NOW = datetime.now(UTC)
LINES = ("reverse : a b c", "copy : d")
Receive = Callable[..., Bundle]


@pytest.fixture
def workspace(program: Program, tmp_path: Path, t5_base: Path) -> CoordinatorWorkspace:
    workspace = CoordinatorWorkspace(tmp_path / "pool")
    assert program(workspace, "init", "--single", "--name", "p", "--base", str(t5_base)) == 0
    return workspace


@pytest.fixture
def receive(workspace: CoordinatorWorkspace, identity: Identity, tmp_path: Path) -> Receive:
    """Has a bundle of Ada's come as far as a state."""

    def receive(seed: int, *steps: State, name: str = "notes") -> Bundle:
        with opened_workspace(workspace.folder) as open_:
            folder = tmp_path / f"bundle-{seed}"
            bundle = factories.make_bundle(folder, open_.pool, identity, name=name, alpha=64.0, seed=seed)
            said = Enrolment(pool=open_.pool.digest, name="ada", key=identity.public.hex, created=timestamp(NOW))
            if not open_.registry.contributors.all():
                open_.registry.contributors.enrol(said, b"", state="active", now=NOW)
            for file, facts in bundle.manifest.files.items():
                Store(open_.settings.store).put(folder / file, facts.sha256)
            open_.registry.bundles.keep(bundle.manifest, check=lambda _: None, sign=lambda _: b"", now=NOW)
            if steps:
                open_.registry.bundles.move(bundle.digest, *steps, actor="worker", now=NOW)
        return bundle

    return receive


def publish(workspace: CoordinatorWorkspace, bundle: Bundle) -> None:
    with opened_workspace(workspace.folder) as open_:
        open_.registry.bundles.move(bundle.digest, State.ACCEPTED, actor="operator", now=NOW)
        newest = open_.registry.releases.find()
        last = read_release(newest.envelope, open_.pool) if newest else None
        listed = [ReleasedExpert(name=bundle.spec.name, contributor="ada", bundle=bundle.digest)]
        spec = next_release(open_.pool, last, accepted=listed, held=open_.registry.bundles.held(), now=NOW)
        assert spec is not None
        open_.registry.releases.publish(sign_release(spec, open_.signer(Duty.RELEASES)), now=NOW)


def answers(base: Path, bundles: list[Bundle], choice: RoutingChoice) -> list[str]:
    model = RoutedModel.from_bundles(str(base), bundles, device="cpu")
    return model.generate(LINES, choice, max_new_tokens=8)


def test_a_waiting_bundle_is_asked_and_stays_as_it_is_until_it_is_let_in(
    program: Program, workspace: CoordinatorWorkspace, receive: Receive, t5_base: Path
) -> None:
    first = receive(1, State.VERIFIED, State.QUARANTINED)
    ask = ("experts", "try", first.digest[:12], *LINES, "--max-new-tokens", "8")
    before = sorted(path for path in workspace.folder.rglob("*") if path.suffix not in (".db-wal", ".db-shm"))
    found = program.json(workspace, *ask)["answers"]
    after = sorted(path for path in workspace.folder.rglob("*") if path.suffix not in (".db-wal", ".db-shm"))
    assert {path.name for path in set(after) - set(before)} <= {"cache", "base.json"}
    base = answers(t5_base, [first], RoutingChoice("base"))
    alone = answers(t5_base, [first], RoutingChoice("expert:notes"))
    assert base != alone
    assert [each["input"] for each in found] == list(LINES)
    assert [each["base"] for each in found] == [each["without"] for each in found] == base, "there is no release yet"
    assert [each["alone"] for each in found] == [each["within"] for each in found] == alone
    assert [each["share"] for each in found] == pytest.approx([1.0, 1.0])
    assert program.json(workspace, "experts", "show", first.digest[:12])["expert"]["state"] == "quarantined"
    publish(workspace, first)
    second = receive(2, State.VERIFIED, State.QUARANTINED, name="verbs")
    found = program.json(workspace, "experts", "try", second.digest, *LINES, "--max-new-tokens", "8")["answers"]
    assert [each["without"] for each in found] == alone, "the release as it is"
    assert [each["within"] for each in found] == answers(t5_base, [first, second], RoutingChoice())
    assert all(0 < each["share"] < 1 for each in found)
    assert program(workspace, "experts", "try", second.digest, LINES[0], "--max-new-tokens", "8") == 0
    assert found[0]["alone"] in program.out


def test_what_supersedes_is_asked_in_the_place_of_what_it_supersedes(
    program: Program, workspace: CoordinatorWorkspace, receive: Receive
) -> None:
    old = receive(1, State.VERIFIED, State.QUARANTINED)
    publish(workspace, old)
    new = receive(2, State.VERIFIED, State.QUARANTINED)
    (found,) = program.json(workspace, "experts", "try", new.digest, LINES[0], "--max-new-tokens", "8")["answers"]
    assert found["within"] == found["alone"]
    assert found["share"] == pytest.approx(1)
    (again,) = program.json(workspace, "experts", "try", old.digest, LINES[0], "--max-new-tokens", "8")["answers"]
    assert again["within"] == again["alone"] == found["without"]


def test_bytes_that_nobody_checked_are_not_asked(
    program: Program, workspace: CoordinatorWorkspace, receive: Receive
) -> None:
    bundle = receive(1)
    assert program(workspace, "experts", "try", bundle.digest, "a") == Code.STATE_CHANGE.fate.exit
    refused(program, Code.STATE_CHANGE)
    with opened_workspace(workspace.folder) as open_:
        open_.registry.bundles.move(bundle.digest, State.VERIFIED, State.QUARANTINED, actor="worker", now=NOW)
    assert program(workspace, "experts", "try", bundle.digest, " ") == Code.REQUEST_INVALID.fate.exit
    assert program(workspace, "experts", "refuse", bundle.digest, "--reason", "No.") == 0
    assert program(workspace, "experts", "try", bundle.digest, "a") == Code.STATE_CHANGE.fate.exit
