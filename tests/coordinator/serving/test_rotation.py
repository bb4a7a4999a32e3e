"""A contributor's key is rotated, recovered or revoked while things are half-way."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.lifecycle import State
from coordinator.policy.switches import Switch
from coordinator.registry.log_check import contradictions
from coordinator.serving.intake import Intake, IntakeLimits
from protocol.bundle import CARD, Bundle
from protocol.documents import read_enrolment, sign_rotation
from protocol.errors import Code
from protocol.fleet.node_key import NodeKey, bind, read_binding
from protocol.signing import Identity
from protocol.v1.intake_pb2 import RotateRequest
from tests import factories
from tests.coordinator.conftest import Served, make_pool, resign
from tests.coordinator.contributor import DEADLINE_S, NOW, Contributor, enrolment
from tests.coordinator.serving.conftest import Join, accept, refusal

ADDRESS = "192.0.2.1"


def rotate(served: Served, old: Identity, new: Identity) -> str:
    return served.intake.rotate(sign_rotation(served.pool, old, new, served.clock()), ADDRESS)


def recover(served: Served, name: str, new: Identity) -> str:
    said = read_enrolment(enrolment(served.pool.digest, new, name))
    return served.registry.contributors.recover(
        said, decide=str.encode, reason="It was lost.", now=served.clock()
    ).state


def make(served: Served, folder: Path, identity: Identity, name: str) -> Bundle:
    number = len(list(folder.iterdir()))
    return factories.make_bundle(folder / f"b{number}", served.pool, identity, name=name, seed=number)


def code(call: Callable[..., object], *arguments: object) -> Code:
    return refusal(call, *arguments).code


def told(served: Served, identity: Identity) -> list[tuple[str, str]]:
    return [(event.step, event.actor) for event in served.registry.events(identity.public.hex)]


def test_rotated_then_the_old_key_uploads(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path
) -> None:
    ada, new = join(identity), Identity.generate()
    receipt = ada.submit(bundle)
    half = make(served, tmp_path, identity, "half")
    begun = ada.begin(half)
    ada.put(half, begun, CARD)
    again = ada.begin(half)
    assert rotate(served, identity, new) == "active"
    assert told(served, identity) == [("active", "contributor"), ("rotated", "contributor")]
    assert told(served, new) == [("active", "contributor")]
    ada.put(half, again)
    assert code(ada.commit, begun) is Code.KEY_ROTATED, "also what was begun before"
    assert code(ada.begin, make(served, tmp_path, identity, "other")) is Code.KEY_ROTATED
    assert code(ada.enrol, served.pool, "ada") is Code.KEY_ROTATED
    assert ada.begin(bundle).receipt == receipt, "what was taken in is told"
    accept(served, bundle.digest)
    assert ada.status(bundle.digest).state == "accepted", "and goes on"
    fresh = Contributor(ada.channel, new)
    assert fresh.enrol(served.pool, "ada") == "active"
    assert code(fresh.enrol, served.pool, "bob") is Code.NAME_TAKEN
    fresh.submit(make(served, tmp_path, new, "second"))
    assert {row.contributor for row in served.registry.bundles.all()} == {identity.public.hex}
    assert contradictions(served.registry) == []


def test_a_rotation_crosses_the_wire(served: Served, join: Join, identity: Identity) -> None:
    ada, new = join(identity), Identity.generate()
    request = RotateRequest(envelope=sign_rotation(served.pool, identity, new, served.clock()))
    assert ada.intake.Rotate(request, timeout=DEADLINE_S).state == "active"
    refused = refusal(ada.enrol, served.pool, "ada")
    assert (refused.code, refused.hint) == (Code.KEY_ROTATED, "Use the workspace that holds the new key.")


def test_a_new_key_supersedes_what_the_old_one_submitted(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path
) -> None:
    ada, new = join(identity), Identity.generate()
    ada.submit(bundle)
    rotate(served, identity, new)
    fresh, name = Contributor(ada.channel, new), bundle.spec.name
    assert code(fresh.begin, make(served, tmp_path, new, name)) is Code.VERSION_REUSED
    again = resign(make(served, tmp_path, new, name), new, supersedes=bundle.digest)
    fresh.submit(again)
    assert fresh.status(again.digest).state == "received"


def test_quota_and_slow_start_go_on_with_the_contributor(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path
) -> None:
    ada, new = join(identity), Identity.generate()
    intake = Intake(
        served.pool, served.identity, served.registry, store=served.store, spool=served.spool, clock=served.clock,
        limits=IntakeLimits(first_bundles=1),
    )  # fmt: skip
    intake.begin(bundle.manifest.envelope)
    rotate(served, identity, new)
    first, second = (make(served, tmp_path, new, name) for name in ("two", "three"))
    intake.begin(first.manifest.envelope)  # what the old key began, and can never finish, takes no place
    assert code(intake.begin, second.manifest.envelope) is Code.QUOTA
    Contributor(ada.channel, new).submit(first)
    third = Identity.generate()
    rotate(served, new, third)
    assert code(intake.begin, make(served, tmp_path, third, "four").manifest.envelope) is Code.QUOTA


def test_rotated_then_the_old_key_is_revoked(served: Served, join: Join, identity: Identity) -> None:
    ada, new = join(identity), Identity.generate()
    rotate(served, identity, new)
    contributors = served.registry.contributors
    for state in ("revoked", "active"):
        old = refusal(partial(contributors.set_state, identity.public.hex, state, now=served.clock()))
        assert (old.code, "ada" in old.hint) == (Code.KEY_ROTATED, True)
    assert contributors.keys() == {identity.public.hex: new.public.hex}
    assert contributors.set_state(new.public.hex, "revoked", now=served.clock()).name == "ada"
    assert told(served, new)[-1] == ("revoked", "operator")
    for key in (identity, new):
        assert code(Contributor(ada.channel, key).enrol, served.pool, "ada") is Code.KEY_REVOKED
    assert code(rotate, served, new, Identity.generate()) is Code.KEY_REVOKED
    assert contradictions(served.registry) == []


def test_who_stole_the_old_key_comes_too_late(served: Served, join: Join, identity: Identity) -> None:
    join(identity)
    second, third = Identity.generate(), Identity.generate()
    assert rotate(served, identity, second) == "active"
    assert code(rotate, served, identity, third) is Code.KEY_ROTATED
    assert rotate(served, identity, second) == "active", "a reply was lost, so the same call comes again"
    assert len(told(served, second)) == 1
    assert rotate(served, second, third) == "active"
    assert code(rotate, served, third, identity) is Code.NAME_TAKEN, "no key comes back"
    assert code(rotate, served, third, second) is Code.NAME_TAKEN
    assert served.registry.contributors.keys() == {identity.public.hex: third.public.hex}
    assert contradictions(served.registry) == []


def test_what_cannot_be_rotated(served: Served, join: Join, identity: Identity) -> None:
    join(identity)
    bob = Identity.generate()
    join(bob, "bob")
    assert code(rotate, served, Identity.generate(), Identity.generate()) is Code.KEY_UNKNOWN
    assert code(rotate, served, identity, bob) is Code.NAME_TAKEN
    assert code(rotate, served, identity, identity) is Code.NAME_TAKEN
    other = make_pool(Identity.generate())
    elsewhere = sign_rotation(other, identity, Identity.generate(), served.clock())
    assert code(served.intake.rotate, elsewhere, ADDRESS) is Code.WRONG_POOL
    assert code(served.intake.rotate, elsewhere + b" " * 20_000, ADDRESS) is Code.TOO_LARGE
    served.registry.switches.throw(Switch.INTAKE, "Later.", pool=served.pool.digest, now=served.clock())
    assert code(rotate, served, identity, Identity.generate()) is Code.CLOSED
    served.registry.switches.reset(Switch.INTAKE, pool=served.pool.digest, now=served.clock())
    served.intake._new_keys._shares = {True: 0, False: 0}
    assert code(rotate, served, identity, Identity.generate()) is Code.BUSY
    assert told(served, identity) == [("active", "contributor")]


def test_revoked_then_recovered_then_approved(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path
) -> None:
    """A laptop is stolen: at once nobody is ada, and later she is who the operator says."""
    ada, new = join(identity), Identity.generate()
    ada.submit(bundle)
    contributors = served.registry.contributors
    contributors.set_state("ada", "revoked", now=served.clock())
    assert code(Contributor(ada.channel, new).enrol, served.pool, "ada") is Code.NAME_TAKEN
    assert recover(served, "ada", new) == "revoked", "recovering approves nobody"
    assert code(Contributor(ada.channel, new).enrol, served.pool, "ada") is Code.KEY_REVOKED
    contributors.set_state("ada", "active", now=served.clock())
    assert code(ada.enrol, served.pool, "ada") is Code.KEY_ROTATED, "the thief stays out"
    fresh = Contributor(ada.channel, new)
    assert fresh.enrol(served.pool, "ada") == "active"
    fresh.submit(make(served, tmp_path, new, "second"))
    assert told(served, identity)[1:] == [("revoked", "operator"), ("rotated", "operator")]
    assert contradictions(served.registry) == []


def test_a_key_is_recovered_for_a_name_that_there_is(served: Served, join: Join, identity: Identity) -> None:
    join(identity)
    assert code(recover, served, "nobody", Identity.generate()) is Code.KEY_UNKNOWN
    assert code(recover, served, "ada", identity) is Code.NAME_TAKEN


def test_rotated_then_paused_by_a_yank(served: Served, join: Join, identity: Identity, bundle: Bundle) -> None:
    ada, new = join(identity), Identity.generate()
    ada.submit(bundle)
    rotate(served, identity, new)
    accept(served, bundle.digest)
    move, clock = served.registry.bundles.move, served.clock
    move(bundle.digest, State.RELEASED, actor="worker", now=clock())
    move(bundle.digest, State.YANKED, actor="operator", now=clock(), pause=True)
    assert told(served, new)[-1] == ("pending", "operator")
    assert Contributor(ada.channel, new).enrol(served.pool, "ada") == "pending"
    third = Identity.generate()
    assert rotate(served, new, third) == "pending", "a new key is no way out"
    served.registry.contributors.set_state(third.public.hex, "active", now=clock())
    assert Contributor(ada.channel, third).enrol(served.pool, "ada") == "active"
    assert contradictions(served.registry) == []


def test_rotated_then_the_daemons_node_is_out_and_another_comes(served: Served, join: Join, identity: Identity) -> None:
    join(identity)
    nodes, new = Fleet(served.registry).nodes, Identity.generate()

    def bound(key: Identity, node: NodeKey) -> None:
        envelope = bind(served.pool.digest, key, node, NOW)
        nodes.bind(read_binding(envelope), envelope, now=served.clock())

    first, second = NodeKey.generate(), NodeKey.generate()
    bound(identity, first)
    rotate(served, identity, new)
    assert code(bound, new, first) is Code.KEY_REVOKED
    assert code(bound, identity, second) is Code.KEY_ROTATED
    bound(new, second)
    assert {node.public: node.state for node, _ in nodes.all()} == {first.public: "revoked", second.public: "active"}
    assert {(node.contributor, name) for node, name in nodes.all()} == {(identity.public.hex, "ada")}
