"""Invites from the token to the last key, and what happens when they are revoked, used up, lost or guessed."""

from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from coordinator.registry.enrolment.invites import Invited
from protocol.errors import Code
from protocol.signing import Identity
from protocol.v1.intake_pb2 import EnrolRequest
from protocol.v1.intake_pb2_grpc import IntakeStub
from tests.coordinator.conftest import Clock, Served, make_pool
from tests.coordinator.contributor import DEADLINE_S, enrolment
from tests.coordinator.serving.conftest import refusal


@pytest.fixture(params=["invite", "approved"])
def served(request: pytest.FixtureRequest, tmp_path: Path, coordinator_identity: Identity, clock: Clock) -> Served:
    """A pool in which an invite makes a difference."""
    return Served(tmp_path, make_pool(coordinator_identity, enrolment=request.param), coordinator_identity, clock)


def invite(served: Served, uses: int = 1, days: int = 1) -> str:
    expires = served.clock() + timedelta(days=days)
    return served.registry.invites.make(uses=uses, expires=expires, note="", now=served.clock())[0]


def enter(served: Served, identity: Identity, name: str, token: str = "") -> str:
    return served.intake.enrol(enrolment(served.pool.digest, identity, name), "192.0.2.1", token)


def state(served: Served) -> str:
    (only,) = served.registry.invites.all()
    return only.state(served.clock())


def test_without_an_invite_a_key_stays_out_or_waits(served: Served, identity: Identity) -> None:
    if served.pool.spec.policy.enrolment == "approved":
        assert enter(served, identity, "ada") == "pending"
    else:
        assert refusal(enter, served, identity, "ada").code is Code.INVITE
        assert served.registry.contributors.find(identity.public.hex) is None


def test_used_then_revoked_who_came_by_it_stays_and_nobody_follows(served: Served, identity: Identity) -> None:
    token = invite(served, uses=5)
    assert enter(served, identity, "ada", token) == "active"
    served.registry.invites.revoke(token[:8], now=served.clock())
    assert state(served) == "revoked"
    refused = refusal(enter, served, Identity.generate(), "bob", token)
    assert (refused.code, "was revoked" in refused.message) == (Code.INVITE, True)
    assert enter(served, identity, "ada", token) == "active", "a reply was lost, so the same call comes again"
    assert enter(served, identity, "ada") == "active"
    assert [each.contributors for each in served.registry.invites.all()] == [["ada"]]
    steps = [(event.kind, event.step, event.actor) for event in served.registry.events() if event.kind == "invite"]
    assert steps == [("invite", "made", "operator"), ("invite", "revoked", "operator")]
    served.registry.invites.revoke(token[:8], now=served.clock())
    assert len(served.registry.events()) == 3, "what is revoked already is no event"


def test_a_revoked_key_is_not_let_in_by_another_invite(served: Served, identity: Identity) -> None:
    enter(served, identity, "ada", invite(served))
    served.registry.contributors.set_state("ada", "revoked", now=served.clock())
    token = invite(served)
    assert refusal(enter, served, identity, "ada", token).code is Code.KEY_REVOKED
    assert enter(served, Identity.generate(), "bob", token) == "active", "the attempt used nothing up"


def test_an_invite_ends_with_its_last_use_or_its_time(served: Served) -> None:
    token = invite(served, uses=2)
    for name in ("ada", "bob"):
        enter(served, Identity.generate(), name, token)
    assert state(served) == "used"
    assert "used up" in refusal(enter, served, Identity.generate(), "eve", token).message
    late = invite(served)
    served.clock.forward(days=1)
    assert "expired" in refusal(enter, served, Identity.generate(), "eve", late).message
    assert sorted(each.state(served.clock()) for each in served.registry.invites.all()) == ["expired", "used"]


def test_whoever_is_refused_for_another_reason_uses_nothing_up(served: Served, identity: Identity) -> None:
    token = invite(served)
    served.intake._new_keys._shares = {True: 1, False: 1}
    enter(served, Identity.generate(), "ada", invite(served))
    assert refusal(enter, served, identity, "ada", token).code is Code.NAME_TAKEN
    assert refusal(enter, served, identity, "bob", token).code is Code.BUSY
    served.clock.forward(hours=1)
    assert enter(served, identity, "bob", token) == "active"


@pytest.mark.parametrize("guess", ["{token:.8}-" + "0" * 32, "f" * 41, "{token:.8}", "{token}0", "\0" * 41, "ü"])
def test_who_does_not_hold_the_secret_learns_nothing(served: Served, identity: Identity, guess: str) -> None:
    token = invite(served)
    served.registry.invites.revoke(token[:8], now=served.clock())
    refused = refusal(enter, served, identity, "ada", guess.format(token=token))
    assert (refused.code, refused.message) == (Code.INVITE, "There is no such invite.")


def test_the_registry_cannot_tell_a_token(served: Served, tmp_path: Path) -> None:
    token = invite(served)
    served.registry.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("served.db*"))
    assert token[:8].encode() in kept
    assert token[9:].encode() not in kept


def test_an_invite_that_there_is_not_cannot_be_revoked(served: Served) -> None:
    assert refusal(lambda: served.registry.invites.revoke("00000000", now=served.clock())).code is Code.INVITE


def test_invites_are_listed_with_who_came(served: Served) -> None:
    token = invite(served, uses=3)
    for name in ("zoe", "ada"):
        enter(served, Identity.generate(), name, token)
        served.clock.forward(minutes=1)
    (told,) = served.registry.invites.all()
    assert isinstance(told, Invited)
    assert (told.contributors, told.invite.sha256 == token) == (["zoe", "ada"], False)


def test_the_token_crosses_the_wire(served: Served, identity: Identity) -> None:
    envelope = enrolment(served.pool.digest, identity, "ada")
    with served.running() as address, grpc.insecure_channel(address) as channel:
        request = EnrolRequest(envelope=envelope, invite=invite(served))
        assert IntakeStub(channel).Enrol(request, timeout=DEADLINE_S).state == "active"
