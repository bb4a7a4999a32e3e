"""What operators decide together: who may, how many must, never of their own, once."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coordinator.cli.output import opened_workspace
from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.registry import Registry
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.bundle import Bundle
from protocol.documents import Duty, Pool, read_enrolment, read_pool, read_rotation, sign_rotation, timestamp
from protocol.errors import Code
from protocol.release import ReleasedExpert, ReleaseSpec, sign_candidate
from protocol.roles.acts import OperatorAct, sign_act
from protocol.signing import Identity
from tests.coordinator.cli.test_main import SHAPES, Program, bundle, founded, program, refused
from tests.coordinator.cli.test_processes import make_workspace
from tests.coordinator.contributor import enrolment

__all__ = ["bundle", "founded", "program"]
Decide = Callable[..., Path]
NOW = datetime.now(UTC)


@pytest.fixture
def operators(identity: Identity, tmp_path: Path) -> dict[str, Identity]:
    """Ada has submitted the bundle with the key with which she decides."""
    held = {"ada": identity, "bob": Identity.generate(), "cleo": Identity.generate()}
    for name, key in held.items():
        key.save(tmp_path / f"{name}.key")
    return held


@pytest.fixture
def place(
    program: Program, founded: tuple[CoordinatorWorkspace, Pool], operators: dict[str, Identity], tmp_path: Path
) -> CoordinatorWorkspace:
    """Two of three must sign."""
    workspace, root = founded[0], str(tmp_path / "root-2.json")
    given = [word for key in operators.values() for word in ("--operator", key.public.hex)]
    few = ("roles", "draft-root", root, *given[:2], "--operator-threshold", "2")
    assert program(workspace, *few) == Code.SETTINGS_INVALID.fate.exit
    assert program(workspace, "roles", "draft-root", root, *given, "--operator-threshold", "2") == 0
    assert program(workspace, "roles", "publish", root) == 0
    return workspace


@pytest.fixture
def decide(program: Program, place: CoordinatorWorkspace, tmp_path: Path) -> Decide:
    def decide(verb: str, subject: str, *names: str) -> Path:
        first, *others = [str(tmp_path / f"{name}.key") for name in names]
        file = str(tmp_path / f"{verb}-{'-'.join(names)}.json")
        begin = ["roles", "decide", verb, subject, file, "--pool", str(place.pool), "--reason", "It is good."]
        assert program(None, *begin, "--key", first) == 0
        for key in others:
            assert program(None, "roles", "sign", file, "--key", key) == 0
            assert "It is good." in program.err
        return Path(file)

    return decide


def steps(place: CoordinatorWorkspace) -> list[tuple[str, str]]:
    registry = Registry.open(f"sqlite:///{place.folder / 'registry.db'}")
    found = [(event.subject, event.step) for file in place.acts.glob("*") for event in registry.events(file.name[:64])]
    registry.close()
    return found


def test_two_of_three_accept_and_nobody_their_own(
    program: Program, place: CoordinatorWorkspace, decide: Decide, bundle: Bundle, operators: dict[str, Identity]
) -> None:
    shown = program.json(place, "roles", "show")["operators"]
    assert shown == {"keys": [key.public.hex for key in operators.values()], "threshold": 2}
    assert program(place, "roles", "show") == 0
    accept = ("experts", "accept", bundle.digest)
    assert program(place, *accept) == Code.BAD_SIGNATURE.fate.exit
    refused(program, Code.BAD_SIGNATURE)
    for names in (["bob"], ["ada", "bob"]):
        alone = decide("accept", bundle.digest, *names)
        assert program(place, *accept, "--act", str(alone)) == Code.BAD_SIGNATURE.fate.exit
    assert "for others to decide" in program.err
    other = decide("unblock", bundle.digest, "bob", "cleo")
    assert program(place, *accept, "--act", str(other)) == Code.STATE_CHANGE.fate.exit
    assert program(place, *accept, "--act", str(place.folder / "none")) == Code.SETTINGS_INVALID.fate.exit
    act = decide("accept", bundle.digest, "bob", "cleo")
    assert program(place, *accept, "--act", str(act)) == 0
    assert [step for _, step in steps(place)] == ["decided", "done"]
    # Shutting out takes one; a second time the act is worth nothing, also for a bundle that could be let in again.
    assert program(place, "experts", "refuse", bundle.digest, "--reason", "No.") == 0
    assert program(place, *accept, "--act", str(act)) == Code.STATE_CHANGE.fate.exit
    refused(program, Code.STATE_CHANGE)
    assert program(place, "experts", "unblock", bundle.digest) == Code.BAD_SIGNATURE.fate.exit
    assert program(place, "experts", "unblock", bundle.digest, "--act", str(other)) == 0
    assert program(place, "log", "verify") == 0


def test_an_operator_who_rotated_the_contributors_key_stays_barred(
    program: Program, place: CoordinatorWorkspace, decide: Decide, bundle: Bundle, operators: dict[str, Identity]
) -> None:
    registry, new, now = (
        Registry.open(f"sqlite:///{place.folder / 'registry.db'}"), Identity.generate(), datetime.now(UTC)
    )  # fmt: skip
    envelope = sign_rotation(read_pool(place.pool.read_bytes()), operators["ada"], new, now)
    registry.contributors.rotate(read_rotation(envelope), envelope, now=now, check=lambda: None)
    registry.close()
    act = decide("accept", bundle.digest, "ada", "cleo")
    assert program(place, "experts", "accept", bundle.digest, "--act", str(act)) == Code.BAD_SIGNATURE.fate.exit


def propose(place: CoordinatorWorkspace, *bundles: Bundle) -> str:
    """Open a candidate for the first release that lists some bundles of Ada's."""
    listed = tuple(ReleasedExpert(name=each.spec.name, contributor="ada", bundle=each.digest) for each in bundles)
    with opened_workspace(place.folder) as open_:
        spec = ReleaseSpec(
            pool=open_.pool.digest, number=1, previous=None, experts=listed, routing=open_.pool.spec.routing,
            created=timestamp(NOW), expires=timestamp(NOW + timedelta(days=1)),
        )  # fmt: skip
        candidate = sign_candidate(spec, open_.signer(Duty.RELEASES))
        Fleet(open_.registry).candidates.propose(candidate, now=NOW)
    return candidate.digest


def test_a_candidate_becomes_a_release_by_two_who_are_not_its_contributor(
    program: Program, place: CoordinatorWorkspace, decide: Decide, bundle: Bundle
) -> None:
    accept = decide("accept", bundle.digest, "bob", "cleo")
    assert program(place, "experts", "accept", bundle.digest, "--act", str(accept)) == 0
    candidate = propose(place, bundle)
    promote = ("candidates", "promote", candidate[:16], "--reason", "Needed now.")
    assert program(place, *promote) == Code.BAD_SIGNATURE.fate.exit
    own = decide("promote", candidate, "ada", "bob")
    assert program(place, *promote, "--act", str(own)) == Code.BAD_SIGNATURE.fate.exit, "Ada's expert is new in it"
    assert program.json(place, "releases", "ls")["releases"] == []
    act = decide("promote", candidate, "bob", "cleo")
    assert program(place, *promote, "--act", str(act)) == 0
    assert [row["number"] for row in program.json(place, "releases", "ls")["releases"]] == [1]
    assert program(place, *promote, "--act", str(act)) == Code.STATE_CHANGE.fate.exit
    assert program(place, "log", "verify") == 0


def test_holding_back_takes_no_act_and_what_is_held_back_is_promoted_by_two(
    program: Program, place: CoordinatorWorkspace, decide: Decide
) -> None:
    candidate = propose(place)
    act = decide("promote", candidate, "ada", "cleo")  # of nobody's experts: all three may sign
    assert program(place, "candidates", "hold", candidate, "--reason", "Wait.") == 0
    promote = ("candidates", "promote", candidate, "--reason", "Waited.")
    assert program(place, *promote) == Code.BAD_SIGNATURE.fate.exit
    after = program(place, *promote, "--act", str(act))
    states = [row["state"] for row in program.json(place, "candidates", "ls")["candidates"]]
    done = [step for _, step in steps(place)]
    assert (after, states, done) == (0, ["promoted"], ["decided", "done"])


def test_keys_are_let_in_and_recovered_by_two(
    program: Program, place: CoordinatorWorkspace, decide: Decide, bundle: Bundle, tmp_path: Path,
    founded: tuple[CoordinatorWorkspace, Pool],
) -> None:  # fmt: skip
    eve, new = Identity.generate(), Identity.generate()
    registry = Registry.open(f"sqlite:///{place.folder / 'registry.db'}")
    envelope = enrolment(founded[1].digest, eve, "eve")
    registry.contributors.enrol(read_enrolment(envelope), envelope, state="pending", now=datetime.now(UTC))
    registry.close()
    assert program(place, "contributors", "approve", "eve") == Code.BAD_SIGNATURE.fate.exit
    act = decide("approve", eve.public.hex, "ada", "bob")
    assert program(place, "contributors", "approve", "eve", "--act", str(act)) == 0
    assert program(place, "contributors", "revoke", "eve") == 0, "one is enough to shut out"
    (file := tmp_path / "enrolment.dsse.json").write_bytes(enrolment(founded[1].digest, new, "eve"))
    recover = ("contributors", "recover", "eve", str(file), "--reason", "The disk broke.")
    assert program(place, *recover) == Code.BAD_SIGNATURE.fate.exit
    act = decide("recover", new.public.hex, "bob", "cleo")
    assert program(place, *recover, "--act", str(act)) == 0


def test_an_invite_takes_two(program: Program, operators: dict[str, Identity], tmp_path: Path) -> None:
    place, pool = make_workspace(tmp_path / "i", SHAPES, enrolment="approved")
    root = str(tmp_path / "root.json")
    given = [word for key in operators.values() for word in ("--operator", key.public.hex)]
    assert program(place, "roles", "draft-root", root, *given, "--operator-threshold", "2") == 0
    assert program(place, "roles", "publish", root) == 0
    assert program(place, "invites", "make") == Code.BAD_SIGNATURE.fate.exit
    act = ["roles", "decide", "invite", pool.digest, str(tmp_path / "i.json"), "--pool", str(place.pool)]
    assert program(None, *act, "--reason", "For five.", "--key", str(tmp_path / "ada.key")) == 0
    assert program(None, "roles", "sign", str(tmp_path / "i.json"), "--key", str(tmp_path / "bob.key")) == 0
    make = ("invites", "make", "--uses", "5", "--act", str(tmp_path / "i.json"))
    assert program(place, *make) == 0
    assert program(place, *make) == Code.STATE_CHANGE.fate.exit, "an act is good for one invite"
    assert program(place, "roles", "draft-root", root, "--new-key", "log") == 0
    assert program(place, "roles", "publish", root) == 0
    assert program(place, "invites", "make") == Code.BAD_SIGNATURE.fate.exit, "another root keeps the operators"


def test_what_is_no_act_in_force_is_refused(
    program: Program, place: CoordinatorWorkspace, decide: Decide, bundle: Bundle, tmp_path: Path,
    operators: dict[str, Identity], founded: tuple[CoordinatorWorkspace, Pool],
) -> None:  # fmt: skip
    file, now = tmp_path / "act.json", datetime.now(UTC)
    said = OperatorAct(
        pool="0" * 64, act="accept", subject=bundle.digest, reason="Good.", created="2026-01-01T00:00:00Z",
        expires=(now - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )  # fmt: skip
    for pool, code in (("0" * 64, Code.WRONG_POOL), (founded[1].digest, Code.CLOCKS_APART)):
        file.write_bytes(sign_act(said.model_copy(update={"pool": pool}), operators["bob"]))
        assert program(None, "roles", "sign", str(file), "--key", str(tmp_path / "cleo.key")) == 0
        assert program(place, "experts", "accept", bundle.digest, "--act", str(file)) == code.fate.exit
        refused(program, code)
    begin = ["roles", "decide", "accept", "12", str(file), "--pool", str(place.pool), "--reason", "Good."]
    assert program(None, *begin, "--key", str(tmp_path / "bob.key")) == Code.REQUEST_INVALID.fate.exit
    begin[2] = "yank"
    assert program(None, *begin, "--key", str(tmp_path / "bob.key")) == 2


def test_a_pool_without_operators_takes_no_act(
    program: Program, founded: tuple[CoordinatorWorkspace, Pool], bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "act.json").write_text("{}")
    accept = ("experts", "accept", bundle.digest, "--act", str(tmp_path / "act.json"))
    assert program(founded[0], *accept) == Code.SETTINGS_INVALID.fate.exit
