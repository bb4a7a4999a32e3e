"""A contributor's key is rotated: what a kill interrupts goes on, and nothing that was made is lost."""

import shutil
from pathlib import Path

import pytest

from client.submission import outbox, rotation
from client.submission.join import enrolled
from client.workspace.paths import ClientWorkspace
from protocol.bundle import open_bundle
from protocol.documents import read_enrolment
from protocol.errors import Code, Refused, Unavailable
from protocol.signing import Identity
from tests.client.conftest import Cli, Site, Trained
from tests.client.fake_coordinator import FakeCoordinator


def key_of(workspace: ClientWorkspace) -> str:
    return workspace.identity().public.hex


def files(root: Path) -> set[str]:
    return {path.name for path in root.glob("contributor.key*")}


@pytest.fixture
def enrolled_site(packed: Site, cli: Cli) -> Site:
    assert cli("submit", "-w", packed.workspace.root)[0] == 0
    return packed


def test_rotated_then_submitting_goes_on_under_the_same_name(
    cli: Cli, enrolled_site: Site, fake: FakeCoordinator
) -> None:
    place = enrolled_site.workspace
    old = key_of(place)
    status, out, _ = cli("rotate-key", "-w", place.root)
    assert (status, out.strip()) == (0, key_of(place))
    assert key_of(place) != old
    assert fake.names == {key_of(place): "anna"}
    assert files(place.root) == {"contributor.key", f"contributor.key.{old[:8]}"}
    assert Identity.load(place.root / f"contributor.key.{old[:8]}").public.hex == old
    assert enrolled(place, place.identity().public)
    assert (place.root / "contributor.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("step", ["announce", "take_over"])
def test_an_interrupted_rotation_goes_on_with_the_same_key(
    cli: Cli, enrolled_site: Site, fake: FakeCoordinator, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, real = enrolled_site.workspace, getattr(rotation, step)
    old = key_of(place)

    def cut(*given: object) -> None:
        real(*given) if step == "announce" else None
        raise Unavailable(Code.UNREACHABLE, "The line is cut.")

    with monkeypatch.context() as patch:
        patch.setattr(rotation, step, cut)
        assert cli("rotate-key", "-w", place.root)[0] == Code.UNREACHABLE.fate.exit
    assert key_of(place) == old
    (waiting,) = fake.names
    status, out, _ = cli("rotate-key", "-w", place.root)
    assert (status, out.strip(), key_of(place)) == (0, waiting, waiting)
    assert files(place.root) == {"contributor.key", f"contributor.key.{old[:8]}"}


def test_a_key_that_nobody_knows_is_exchanged_without_a_word(cli: Cli, packed: Site, fake: FakeCoordinator) -> None:
    old = key_of(packed.workspace)
    assert cli("rotate-key", "-w", packed.workspace.root)[0] == 0
    assert (fake.names, key_of(packed.workspace) == old) == ({}, False)


def test_a_refused_rotation_changes_nothing(cli: Cli, enrolled_site: Site, fake: FakeCoordinator) -> None:
    place = enrolled_site.workspace
    old, enrolment = key_of(place), place.enrolment_file.read_bytes()
    fake.fail["Rotate"] = [Refused(Code.KEY_REVOKED, "The key was revoked.")]
    assert cli("rotate-key", "-w", place.root)[0] == Code.KEY_REVOKED.fate.exit
    assert (key_of(place), place.enrolment_file.read_bytes()) == (old, enrolment)


def test_a_lost_key_is_replaced_here_and_the_operator_asked(
    cli: Cli, enrolled_site: Site, fake: FakeCoordinator
) -> None:
    place = enrolled_site.workspace
    old = key_of(place)
    (place.root / "contributor.key").write_text("no key any more")
    calls = len(fake.calls)
    status, out, err = cli("rotate-key", "--lost", "-w", place.root)
    assert (status, out.strip(), len(fake.calls)) == (0, key_of(place), calls)
    said = read_enrolment(place.enrolment_file.read_bytes())
    assert (said.name, said.key) == ("anna", key_of(place))
    assert "contributors recover anna" in err
    assert (place.root / f"contributor.key.{old[:8]}").read_text() == "no key any more"


def test_a_daemons_node_key_goes_with_the_old_key(cli: Cli, enrolled_site: Site) -> None:
    corner = enrolled_site.workspace.root / "daemon"
    corner.mkdir()
    (corner / "node.key").write_text("old")
    assert cli("rotate-key", "-w", enrolled_site.workspace.root)[0] == 0
    assert not (corner / "node.key").exists()


@pytest.mark.parametrize("trained", ["t5"], indirect=True)
def test_what_was_not_submitted_is_signed_again(
    cli: Cli, trained: Trained, address: str, fake: FakeCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
    place = ClientWorkspace(Path(shutil.copytree(trained.site.workspace.root, tmp_path / "w")))
    shutil.rmtree(place.outbox, ignore_errors=True)  # what other tests submitted from there
    place.checkpoint.unlink(missing_ok=True)  # of another test's log
    before = open_bundle(place.bundles / "reverse")
    status, _, err = cli("rotate-key", "-w", place.root)
    after = open_bundle(place.bundles / "reverse")
    assert (status, after.digest[:12] in err) == (0, True)
    assert (after.spec.contributor, after.digest == before.digest) == (key_of(place), False)
    same = after.spec.model_copy(update={"contributor": before.spec.contributor, "created": before.spec.created})
    assert same == before.spec
    assert cli("submit", "-w", place.root)[0] == 0
    (record,) = outbox.load(place.outbox)
    assert record.digest == after.digest
    assert cli("rotate-key", "-w", place.root)[0] == 0
    assert open_bundle(place.bundles / "reverse").digest == after.digest, "what was submitted is history"
