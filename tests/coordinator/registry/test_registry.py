"""One contract, two databases."""

import multiprocessing
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import select

from coordinator.policy.lifecycle import Standing, State
from coordinator.registry.bundles import read_standing
from coordinator.registry.log_check import contradictions
from coordinator.registry.registry import Registry
from coordinator.registry.tables import Contributor, Event, Upload
from protocol.bundle import Bundle, Manifest
from protocol.compatibility import Submitted
from protocol.documents import Enrolment, Pool, Rotation
from protocol.errors import Code, Refused
from protocol.release import ReleasedExpert, ReleaseSpec, sign_release
from protocol.signing import Identity
from tests import factories
from tests.coordinator.conftest import Clock, resign
from tests.coordinator.contributor import NOW, enrolment
from tests.coordinator.enroller import enrol_many


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def registry(database_url: str, events: list[Event]) -> Iterator[Registry]:
    registry = Registry.open(database_url, events.append, migrate=True)
    yield registry
    registry.close()


def enrol(registry: Registry, pool: Pool, identity: Identity, clock: Clock, name: str = "ada") -> str:
    document = Enrolment(pool=pool.digest, name=name, key=identity.public.hex, created=NOW)
    return registry.contributors.enrol(document, enrolment(pool.digest, identity, name), state="active", now=clock())


def keep(registry: Registry, bundle: Bundle, clock: Clock) -> bytes:
    return registry.bundles.keep(bundle.manifest, check=lambda _: None, sign=lambda n: b"receipt %d" % n, now=clock())


def nothing(_told: object) -> None:
    """Refuse nothing."""


def steps(registry: Registry, digest: str) -> list[str]:
    return [event.step for event in registry.events(digest)]


def test_enrolling_twice_is_once(registry: Registry, pool: Pool, identity: Identity, clock: Clock) -> None:
    assert enrol(registry, pool, identity, clock) == enrol(registry, pool, identity, clock) == "active"
    assert [row.name for row in registry.contributors.all()] == ["ada"]
    assert len(registry.events(identity.public.hex)) == 1


def test_a_name_and_a_key_belong_together(registry: Registry, pool: Pool, identity: Identity, clock: Clock) -> None:
    enrol(registry, pool, identity, clock)
    with pytest.raises(Refused) as name_of_another:
        enrol(registry, pool, Identity.generate(), clock)
    with pytest.raises(Refused) as another_name:
        enrol(registry, pool, identity, clock, "bob")
    assert name_of_another.value.code is another_name.value.code is Code.NAME_TAKEN


def test_a_revoked_key_stays_out(registry: Registry, pool: Pool, identity: Identity, clock: Clock) -> None:
    enrol(registry, pool, identity, clock)
    registry.contributors.set_state("ada", "revoked", now=clock())
    with pytest.raises(Refused) as refused:
        enrol(registry, pool, identity, clock)
    assert refused.value.code is Code.KEY_REVOKED
    with pytest.raises(Refused) as unknown:
        registry.contributors.set_state("nobody", "active", now=clock())
    assert unknown.value.code is Code.KEY_UNKNOWN


def test_keys_come_by_invitation_and_are_rotated(
    registry: Registry, pool: Pool, identity: Identity, bundle: Bundle, clock: Clock
) -> None:
    token, _ = registry.invites.make(uses=1, expires=clock() + timedelta(days=1), note="", now=clock())
    keys = [identity, *(Identity.generate() for _ in range(3))]
    document = Enrolment(pool=pool.digest, name="ada", key=keys[0].public.hex, created=NOW)
    assert registry.contributors.enrol(document, b"", state=None, invite=token, now=clock()) == "active"
    keep(registry, bundle, clock)
    for old, new in pairwise(keys):
        rotation = Rotation(pool=pool.digest, old=old.public.hex, new=new.public.hex, created=NOW)
        assert registry.contributors.rotate(rotation, b"", now=clock()) == "active"
    enrol(registry, pool, bob := Identity.generate(), clock, "bob")
    assert registry.contributors.keys() == {
        identity.public.hex: keys[-1].public.hex, bob.public.hex: bob.public.hex
    }  # fmt: skip
    assert [(each.invite.uses, each.contributors) for each in registry.invites.all()] == [(1, ["ada"])]
    for key in keys:
        assert registry.contributors.find(key.public.hex).name == "ada"  # type: ignore[union-attr]
    assert contradictions(registry) == []


def test_a_name_never_stands_for_a_key(registry: Registry, pool: Pool, identity: Identity, clock: Clock) -> None:
    stolen, stranger = identity.public.hex, Identity.generate()
    with pytest.raises(Refused) as misleading:
        enrol(registry, pool, stranger, clock, stolen)
    assert misleading.value.code is Code.NAME_MISLEADING
    assert registry.contributors.all() == []
    # As it may stand in a registry that earlier versions wrote.
    with registry.writing() as session:
        old = Contributor(key=stranger.public.hex, name=stolen, state="pending", envelope=b"", enrolled=NOW)
        session.add(old)
    with pytest.raises(Refused) as unknown:
        registry.contributors.set_state(stolen, "active", now=clock())
    assert unknown.value.code is Code.KEY_UNKNOWN, "64 digits are always a key"
    assert enrol(registry, pool, stranger, clock, stolen) == "pending", "who is in stays in"
    enrol(registry, pool, identity, clock)
    assert registry.contributors.set_state(stolen, "revoked", now=clock()).name == "ada"
    assert registry.contributors.set_state(stranger.public.hex, "active", now=clock()).name == stolen
    assert {row.name: row.state for row in registry.contributors.all()} == {"ada": "revoked", stolen: "active"}


def test_an_upload_session_is_one_and_expires(
    registry: Registry, pool: Pool, identity: Identity, bundle: Bundle, clock: Clock
) -> None:
    enrol(registry, pool, identity, clock)
    expires = clock() + timedelta(hours=1)
    dropped: list[str] = []

    def drop(digest: str) -> bool:
        dropped.append(digest)
        return len(dropped) > 1

    registry.uploads.begin(bundle.manifest, check=nothing, token=b"first", expires=expires)
    again = registry.uploads.begin(bundle.manifest, check=nothing, token=b"second", expires=expires)
    assert isinstance(again, Upload)
    assert again.token == b"first"
    expire = partial(registry.uploads.expire, drop, is_idle=lambda _: False)
    expire(now=clock())
    assert dropped == []
    clock.forward(hours=1)
    assert registry.uploads.find(bundle.digest, now=clock()) is None
    expire(now=clock())
    assert registry.uploads.digests() == {bundle.digest}, "somebody works on it"
    expire(now=clock())
    assert (dropped, registry.uploads.digests()) == ([bundle.digest] * 2, set())


def test_keeping_is_one_row_and_one_receipt(
    registry: Registry, pool: Pool, identity: Identity, bundle: Bundle, clock: Clock, events: list[Event]
) -> None:
    enrol(registry, pool, identity, clock)
    registry.uploads.begin(bundle.manifest, check=nothing, token=b"t", expires=clock() + timedelta(hours=1))
    assert keep(registry, bundle, clock) == keep(registry, bundle, clock) == b"receipt 1"
    assert registry.uploads.digests() == set()
    assert [(row.sequence, row.state) for row in registry.bundles.all()] == [(1, State.RECEIVED)]
    assert {file.sha256 for file in bundle.manifest.files.values()} == registry.bundles.files()
    assert [(event.number, event.kind, event.step) for event in events] == [
        (1, "contributor", "active"),
        (2, "bundle", "received"),
    ]


def test_a_refusal_at_the_last_moment_leaves_no_row(
    registry: Registry, pool: Pool, identity: Identity, bundle: Bundle, clock: Clock, events: list[Event]
) -> None:
    enrol(registry, pool, identity, clock)

    def refuse(_standing: Standing) -> None:
        raise Refused(Code.QUOTA, "No.")

    with pytest.raises(Refused):
        registry.bundles.keep(bundle.manifest, check=refuse, sign=lambda _: b"", now=clock())
    assert registry.bundles.find(bundle.digest) is None
    assert len(events) == 1, "no event without its commit"


def standing(registry: Registry, manifest: Manifest) -> Standing:
    with registry.reading() as session:
        return read_standing(session, manifest)


def test_standing(registry: Registry, pool: Pool, identity: Identity, clock: Clock, tmp_path: Path) -> None:
    first = factories.make_bundle(tmp_path / "1", pool, identity, name="one", seed=1)
    second = factories.make_bundle(tmp_path / "2", pool, identity, name="two", seed=2)
    stranger = Identity.generate()
    copy = factories.make_bundle(tmp_path / "3", pool, stranger, name="copy", seed=1)
    assert standing(registry, first.manifest) == Standing(contributor=None)
    enrol(registry, pool, identity, clock)
    enrol(registry, pool, stranger, clock, "bob")
    keep(registry, first, clock)
    registry.uploads.begin(second.manifest, check=nothing, token=b"t", expires=clock() + timedelta(hours=1))
    third = resign(second, identity, name="three")
    kept = {"one": [Submitted(first.digest, "received")]}
    held = first.manifest.total_bytes + second.manifest.total_bytes
    assert standing(registry, third.manifest) == Standing("active", earlier=kept, uploads=("two",), kept_bytes=held)
    assert standing(registry, copy.manifest) == Standing("active", twin=1)
    registry.bundles.move(first.digest, State.REFUSED, actor="worker", now=clock())
    assert standing(registry, copy.manifest).twin is None
    after = standing(registry, third.manifest)
    assert after.earlier == {"one": [Submitted(first.digest, "refused")]}
    assert after.kept_bytes == second.manifest.total_bytes
    assert [size for _, size in after.refused] == [first.manifest.total_bytes]


def test_a_life_step_by_step(registry: Registry, pool: Pool, identity: Identity, bundle: Bundle, clock: Clock) -> None:
    enrol(registry, pool, identity, clock)
    keep(registry, bundle, clock)
    registry.bundles.move(bundle.digest, State.VERIFIED, State.QUARANTINED, actor="worker", now=clock())
    assert registry.bundles.public_size(bundle.manifest.files["README.md"].sha256) is None
    registry.bundles.move(bundle.digest, State.ACCEPTED, actor="operator", now=clock())
    assert (
        registry.bundles.public_size(bundle.manifest.files["README.md"].sha256)
        == bundle.manifest.files["README.md"].size
    )
    assert steps(registry, bundle.digest) == ["received", "verified", "quarantined", "accepted"]
    reason = Refused(Code.PROBE_FAILED, "It breaks.", "Train again.")
    row = registry.bundles.move(bundle.digest, State.REFUSED, actor="worker", reason=reason, now=clock())
    assert (row.code, row.message, row.hint) == ("PROBE_FAILED", "It breaks.", "Train again.")
    assert registry.events(bundle.digest)[-1].code == "PROBE_FAILED"
    with pytest.raises(Refused) as refused:
        registry.bundles.move(bundle.digest, State.ACCEPTED, actor="operator", now=clock())
    assert refused.value.code is Code.STATE_CHANGE
    assert registry.bundles.by_prefix(bundle.digest[:8]).digest == bundle.digest
    for unknown in (bundle.digest[:7], "f" * 64, "%" * 8):
        with pytest.raises(Refused) as not_found:
            registry.bundles.by_prefix(unknown)
        assert not_found.value.code is Code.BUNDLE_UNKNOWN


def test_a_release_and_its_steps_are_one(
    registry: Registry, coordinator_identity: Identity, pool: Pool, identity: Identity, bundle: Bundle, clock: Clock
) -> None:
    enrol(registry, pool, identity, clock)
    keep(registry, bundle, clock)
    expert = ReleasedExpert(name="expert", contributor="ada", bundle=bundle.digest)

    def make(number: int) -> ReleaseSpec:
        return ReleaseSpec(
            pool=pool.digest, number=number, previous=None, experts=(expert,), routing=pool.spec.routing, created=NOW,
            expires="2126-11-22T12:00:00Z",
        )  # fmt: skip

    release = sign_release(make(1), coordinator_identity)
    with pytest.raises(Refused):
        registry.releases.publish(release, now=clock())  # not accepted yet
    assert registry.releases.find() is None
    registry.bundles.move(bundle.digest, State.VERIFIED, State.QUARANTINED, State.ACCEPTED, actor="worker", now=clock())
    registry.releases.publish(release, now=clock())
    with pytest.raises(Refused, match="cannot follow release 1") as skipped:
        registry.releases.publish(sign_release(make(3), coordinator_identity), now=clock())
    assert skipped.value.code is Code.STATE_CHANGE
    row = registry.bundles.find(bundle.digest)
    assert row is not None
    assert (row.state, row.release) == (State.RELEASED, 1)
    newest, first = registry.releases.find(), registry.releases.find(1)
    assert newest is not None
    assert first is not None
    assert newest.envelope == first.envelope == release.envelope
    registry.bundles.move(bundle.digest, State.YANKED, actor="operator", now=clock())
    with pytest.raises(Refused) as yanked:
        registry.releases.publish(sign_release(make(2), coordinator_identity), now=clock())
    assert yanked.value.code is Code.STATE_CHANGE, "a yanked bundle never gets into a new release"
    with pytest.raises(Refused) as refused:
        registry.releases.publish(sign_release(make(3), coordinator_identity), now=clock())
    assert refused.value.code is Code.STATE_CHANGE


def test_the_journal_never_runs_backwards(registry: Registry, pool: Pool, identity: Identity, clock: Clock) -> None:
    enrol(registry, pool, identity, clock)
    clock.forward(days=-2)
    enrol(registry, pool, Identity.generate(), clock, "bob")
    first, second = registry.events()
    assert second.at == first.at
    assert second.number == first.number + 1


def test_two_processes_share_one_journal(database_url: str, registry: Registry, pool: Pool, clock: Clock) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=enrol_many, args=(database_url, pool.digest, n, 15, clock())) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [event.number for event in registry.events()] == list(range(1, 31))


def test_of_two_writers_one_waits(database_url: str) -> None:
    with closing(Registry.open(database_url, migrate=True)) as ours, closing(Registry.open(database_url)) as theirs:
        done: list[str] = []

        def write() -> None:
            with theirs.writing() as session:
                session.scalar(select(Event.number))
                done.append("theirs")

        other = Thread(target=write)
        with ours.writing() as session:
            session.scalar(select(Event.number))
            other.start()
            other.join(0.5)
            done.append("ours")
        other.join(30)
    assert done == ["ours", "theirs"]
