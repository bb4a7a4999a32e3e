"""Nodes and candidates through the gRPC door."""

import hashlib
from collections.abc import Callable, Iterator
from datetime import timedelta

import grpc
import pytest

from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.tables import Campaign, Round
from coordinator.serving.intake import Intake, IntakeLimits
from protocol.documents import timestamp
from protocol.errors import Code, GreylagError
from protocol.fleet.attestation import Attestation
from protocol.fleet.node_key import NodeKey, bind, read_binding
from protocol.release import ReleasedExpert, ReleaseSpec, read_candidate, sign_candidate, sign_release
from protocol.signing import Identity
from protocol.v1 import catalog_pb2, intake_pb2
from protocol.wire.grpc_status import from_rpc_error
from tests.coordinator.conftest import Served
from tests.coordinator.contributor import DEADLINE_S, NOW, Contributor, enrolment

Call = Callable[[Contributor], object]


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with served.running() as address, grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def ada(channel: grpc.Channel, identity: Identity) -> Contributor:
    return Contributor(channel, identity)


def refusal(ada: Contributor, call: Call) -> GreylagError:
    with pytest.raises(grpc.RpcError) as error:
        call(ada)
    return from_rpc_error(error.value, "the coordinator")


def tie(pool: str, node: NodeKey) -> Callable[[Contributor], str]:
    def call(contributor: Contributor) -> str:
        request = intake_pb2.BindRequest(envelope=bind(pool, contributor.identity, node, NOW))
        return contributor.intake.Bind(request, timeout=DEADLINE_S).fleet

    return call


def test_a_daemon_is_told_where_to_connect(served: Served, ada: Contributor) -> None:
    call = tie(served.pool.digest, NodeKey.generate())
    assert refusal(ada, call).code is Code.KEY_UNKNOWN
    ada.enrol(served.pool, "ada")
    assert call(ada) == "fleet.example.org:7444"
    assert call(ada) == "fleet.example.org:7444"
    assert [name for _, name in Fleet(served.registry).nodes.all()] == ["ada"]


def test_a_node_of_another_pool_is_refused(served: Served, ada: Contributor) -> None:
    ada.enrol(served.pool, "ada")
    assert refusal(ada, tie("1" * 64, NodeKey.generate())).code is Code.WRONG_POOL


@pytest.mark.parametrize("apart", [timedelta(hours=-1), timedelta(hours=1)])
def test_clocks_that_are_apart_are_told_at_once(served: Served, ada: Contributor, apart: timedelta) -> None:
    ada.enrol(served.pool, "ada")
    there = timestamp(served.clock() + apart)

    def call(contributor: Contributor) -> object:
        envelope = bind(served.pool.digest, contributor.identity, NodeKey.generate(), there)
        return contributor.intake.Bind(intake_pb2.BindRequest(envelope=envelope), timeout=DEADLINE_S)

    error = refusal(ada, call)
    assert error.code is Code.CLOCKS_APART
    assert there in error.message
    assert Fleet(served.registry).nodes.all() == []


def test_what_was_overheard_and_is_said_again_changes_nothing(
    served: Served, ada: Contributor, channel: grpc.Channel
) -> None:
    """The envelopes of somebody's introduction are public; with them nobody becomes that somebody."""
    fleet, old, new = Fleet(served.registry), NodeKey.generate(), NodeKey.generate()
    ada.enrol(served.pool, "ada")
    for node in (old, new):
        tie(served.pool.digest, node)(ada)
    envelope = enrolment(served.pool.digest, ada.identity, "ada")
    assert ada.intake.Enrol(intake_pb2.EnrolRequest(envelope=envelope), timeout=DEADLINE_S).state == "active"
    # Her earlier node stays out of use, and her present one is hers.
    assert refusal(ada, tie(served.pool.digest, old)).code is Code.KEY_REVOKED
    bob = Contributor(channel, Identity.generate())
    bob.enrol(served.pool, "bob")
    assert refusal(bob, tie(served.pool.digest, new)).code is Code.NODE_TAKEN
    states = {node.public: (node.state, name) for node, name in fleet.nodes.all()}
    assert states == {old.public: ("revoked", "ada"), new.public: ("active", "ada")}
    # Once she is shut out, nothing of hers lets her in again.
    served.registry.contributors.set_state("ada", "revoked", now=served.clock())
    assert refusal(ada, tie(served.pool.digest, new)).code is Code.KEY_REVOKED
    assert {node.state for node, name in fleet.nodes.all() if name == "ada"} == {"revoked"}


def test_a_node_shows_newer_evidence_and_older_does_not_come_back(served: Served, ada: Contributor) -> None:
    node, fleet = NodeKey.generate(), Fleet(served.registry)
    ada.enrol(served.pool, "ada")

    def show(evidence: str, seconds: int) -> Attestation | None:
        shown = Attestation(kind="report", evidence=evidence) if evidence else None
        at = timestamp(served.clock() + timedelta(seconds=seconds))
        envelope = bind(served.pool.digest, ada.identity, node, at, shown)
        ada.intake.Bind(intake_pb2.BindRequest(envelope=envelope), timeout=DEADLINE_S)
        ((row, _),) = fleet.nodes.all()
        return read_binding(row.envelope).attestation

    first, second = Attestation(kind="report", evidence="AAAA"), Attestation(kind="report", evidence="BBBB")
    assert show("", 0) is None
    assert show("AAAA", 1) == first
    assert show("BBBB", 2) == second
    assert show("AAAA", 1) == second, "somebody says again what was overheard"
    assert show("", 3) == second, "a daemon without evidence takes none away"
    served.registry.contributors.set_state("ada", "revoked", now=served.clock())
    with pytest.raises(grpc.RpcError):
        show("CCCC", 4)
    ((row, _),) = fleet.nodes.all()
    assert read_binding(row.envelope).attestation == second


def test_a_coordinator_without_a_fleet_takes_no_daemons(served: Served, ada: Contributor, identity: Identity) -> None:
    served.service._intake = Intake(  # type: ignore[union-attr]
        served.pool, served.identity, served.registry, store=served.store, spool=served.spool, clock=served.clock,
        limits=IntakeLimits(first_bundles=99),
    )  # fmt: skip
    assert refusal(ada, tie(served.pool.digest, NodeKey.generate())).code is Code.FLEET_OFF


def test_a_candidate_is_handed_out_by_its_digest_only(served: Served, ada: Contributor) -> None:
    expert = ReleasedExpert(name="e", contributor="ada", bundle="4" * 64)
    spec = ReleaseSpec.model_validate(
        {
            "pool": served.pool.digest, "number": 1, "previous": None, "experts": (expert,),
            "routing": served.pool.spec.routing, "created": NOW, "expires": "2026-12-22T12:00:00Z",
        }
    )  # fmt: skip
    candidate = sign_candidate(spec, served.identity)
    Fleet(served.registry).candidates.propose(candidate, now=served.clock())

    def get(digest: str) -> Callable[[Contributor], bytes]:
        request = catalog_pb2.GetReleaseRequest(candidate=digest)
        return lambda contributor: contributor.catalog.GetRelease(request, timeout=DEADLINE_S).envelope

    assert read_candidate(get(candidate.digest)(ada), served.pool).spec == spec
    assert refusal(ada, get("")).code is Code.RELEASE_UNKNOWN
    assert refusal(ada, get("5" * 64)).code is Code.CANDIDATE_UNKNOWN
    assert refusal(ada, get("../x")).code is Code.BUNDLE_UNKNOWN


def test_what_a_round_came_to_is_handed_out_by_its_digest(served: Served, ada: Contributor) -> None:
    content = bytes(range(256)) * 5000
    digest = hashlib.sha256(content).hexdigest()
    with served.registry.writing() as session:
        row = {"state": "finished", "envelope": b"", "open_until": NOW, "expires": NOW, "created": NOW}
        session.add(Campaign(number=1, kind="calibrate", **row))
        session.flush()
        session.add(Round(campaign=1, number=1, envelope=b"", ends=NOW))

    def fetch(offset: int = 0) -> bytes:
        request = catalog_pb2.FetchRequest(sha256=digest, offset=offset)
        return b"".join(chunk.data for chunk in ada.catalog.Fetch(request, timeout=DEADLINE_S))

    assert refusal(ada, lambda _: fetch()).code is Code.BUNDLE_UNKNOWN
    (row_of_it,) = Fleet(served.registry).rounds.of(1)
    Fleet(served.registry).rounds.close(
        row_of_it, content, {"late": []}, noise=None, following=None, now=served.clock()
    )
    assert fetch() == content
    assert fetch(len(content) - 3) == content[-3:]
    assert fetch(len(content)) == b""
    assert refusal(ada, lambda _: fetch(len(content) + 1)).code is Code.REQUEST_INVALID


def test_a_release_is_handed_out_by_its_digest_too(served: Served, ada: Contributor, identity: Identity) -> None:
    spec = ReleaseSpec(
        pool=served.pool.digest, number=1, previous=None, experts=(), routing=served.pool.spec.routing,
        created=NOW, expires=timestamp(served.clock() + timedelta(days=1)),
    )  # fmt: skip
    release = sign_release(spec, identity)
    served.registry.releases.publish(release, now=served.clock())
    request = catalog_pb2.GetReleaseRequest(candidate=release.digest)
    assert ada.catalog.GetRelease(request, timeout=DEADLINE_S).envelope == release.envelope
