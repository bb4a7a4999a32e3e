"""Upload sessions, room and hashing: what many who come at once, or go away, leave to the others."""

import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import grpc
import pytest

from protocol.bundle import CARD, GATES, Bundle
from protocol.documents import Pool, read_receipt
from protocol.errors import Code, Unavailable
from protocol.signing import Identity
from protocol.v1 import catalog_pb2, intake_pb2
from tests import factories
from tests.coordinator.conftest import Clock, Served, make_pool, resign
from tests.coordinator.contributor import DEADLINE_S, Contributor
from tests.coordinator.serving.conftest import Join, accept, refusal


def test_a_full_disk_refuses_a_beginning(served: Served, join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    served.free_bytes = 1000
    full = refusal(lambda: ada.begin(bundle))
    assert full.code is Code.STORAGE_FULL
    assert isinstance(full, Unavailable)
    served.free_bytes = 1 << 40
    ada.submit(bundle)


def test_uploads_that_were_begun_count(served: Served, join: Join, identity: Identity, bundle: Bundle) -> None:
    ada, limit = join(identity), served.pool.spec.policy.max_experts_per_contributor
    for number in range(limit):
        ada.begin(resign(bundle, identity, name=f"e{number}"))
    assert refusal(lambda: ada.begin(resign(bundle, identity, name="more"))).code is Code.QUOTA
    assert len(served.registry.uploads.digests()) == limit


def test_a_race_for_the_same_weights_is_decided_at_commit(
    join: Join, identity: Identity, bundle: Bundle, pool: Pool, tmp_path: Path
) -> None:
    ada, thief = join(identity), Identity.generate()
    bob = join(thief, "bob")
    other = factories.make_bundle(tmp_path / "other", pool, thief)
    first, second = ada.begin(bundle), bob.begin(other)
    ada.put(bundle, first)
    bob.put(other, second)
    ada.commit(first)
    assert refusal(lambda: bob.commit(second)).code is Code.DUPLICATE_OF


def test_a_begin_that_races_its_own_commit_finds_the_receipt(
    served: Served, join: Join, identity: Identity, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = join(identity)
    receipt = ada.submit(bundle)
    monkeypatch.setattr(served.registry.bundles, "find", lambda _: None)  # what it sees who looks before that
    assert ada.begin(bundle).receipt == receipt
    assert served.registry.uploads.digests() == set()
    assert list(served.spool._folder.iterdir()) == []


def limited_to_one(tmp_path: Path, identity: Identity, clock: Clock) -> Served:
    return Served(tmp_path, make_pool(identity, max_experts_per_contributor=1), identity, clock)


def test_an_abandoned_upload_of_the_same_name_does_not_block_its_successor(
    tmp_path: Path, coordinator_identity: Identity, identity: Identity, clock: Clock
) -> None:
    served = limited_to_one(tmp_path, coordinator_identity, clock)
    first, second = (factories.make_bundle(tmp_path / str(n), served.pool, identity, seed=n) for n in (1, 2))
    with served.running() as address, grpc.insecure_channel(address) as channel:
        ada = Contributor(channel, identity)
        ada.enrol(served.pool, "ada")
        begun = ada.begin(first)
        ada.put(first, begun, GATES)
        ada.submit(second)
        ada.put(first, begun, *set(first.manifest.files) - {GATES})
        assert refusal(lambda: ada.commit(begun)).code is Code.VERSION_REUSED


def test_a_race_for_a_name_is_decided_at_commit(
    join: Join, identity: Identity, bundle: Bundle, pool: Pool, tmp_path: Path
) -> None:
    ada = join(identity)
    other = factories.make_bundle(tmp_path / "other", pool, identity, seed=9)
    first, second = ada.begin(bundle), ada.begin(other)
    ada.put(bundle, first)
    ada.put(other, second)
    ada.commit(first)
    assert refusal(lambda: ada.commit(second)).code is Code.VERSION_REUSED
    ada.submit(resign(other, identity, supersedes=bundle.digest))


@pytest.mark.parametrize("hours", [0, 25])
def test_nobody_swaps_the_files_of_a_commit_at_work(
    served: Served,
    join: Join,
    identity: Identity,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hours: int,
) -> None:
    """A successor begins, and the same bundle begins anew, while its checked bytes go to the store."""
    ada = join(identity)
    successor = factories.make_bundle(tmp_path / "other", served.pool, identity, seed=9)
    begun = ada.begin(bundle)
    ada.put(bundle, begun)

    def meanwhile(point: str) -> None:
        if point == "bytes-checked":
            served.clock.forward(hours=hours)
            served.intake.begin(successor.manifest.envelope)
            served.intake.begin(bundle.manifest.envelope)

    monkeypatch.setattr("coordinator.serving.intake.fault_point", meanwhile)
    assert read_receipt(ada.commit(begun), served.pool).bundle == bundle.digest
    assert all(served.store.verify(file.sha256) for file in bundle.manifest.files.values())
    assert served.registry.uploads.digests() == {successor.digest}
    assert [path.name for path in served.spool._folder.iterdir()] == [successor.digest]


def test_who_is_refused_takes_no_lock(
    served: Served, join: Join, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = join(Identity.generate())

    def writing() -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(served.registry, "writing", writing)
    assert refusal(lambda: ada.begin(bundle)).code is Code.KEY_UNKNOWN


def test_a_session_that_gets_no_byte_ends_in_minutes_however_often_it_is_begun(
    tmp_path: Path, coordinator_identity: Identity, identity: Identity, clock: Clock
) -> None:
    served = limited_to_one(tmp_path, coordinator_identity, clock)
    bundle = factories.make_bundle(tmp_path / "b", served.pool, identity)
    with served.running() as address, grpc.insecure_channel(address) as channel:
        ada = Contributor(channel, identity)
        ada.enrol(served.pool, "ada")
        ada.begin(bundle)
        clock.forward(minutes=29)
        other, third = (resign(bundle, identity, name=name) for name in ("other", "third"))
        assert refusal(lambda: ada.begin(other)).code is Code.QUOTA
        ada.begin(bundle)
        clock.forward(minutes=1)
        ada.put(other, ada.begin(other), CARD)
        for _ in range(2):
            clock.forward(minutes=29)
            assert refusal(lambda: ada.begin(third)).code is Code.QUOTA
        clock.forward(minutes=1)
        ada.begin(third)
        assert served.registry.uploads.digests() == {third.digest}


def test_no_upload_lives_longer_than_a_day(served: Served, join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    for name in (CARD, GATES):
        served.clock.forward(hours=11)
        ada.put(bundle, begun, name)
        ada.begin(bundle)
    served.clock.forward(hours=3)
    served.intake.sweep()
    assert served.registry.uploads.digests() == set()


def test_a_statement_is_verified_once_an_upload(
    served: Served, join: Join, identity: Identity, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    ada.put(bundle, begun, CARD)
    monkeypatch.setattr("protocol.signing.Signed.parse", None)
    ada.put(bundle, begun, *set(bundle.manifest.files) - {CARD})


@pytest.mark.parametrize("call", ["Enrol", "Begin", "Bind"])
def test_what_is_too_long_is_not_read(
    served: Served, join: Join, identity: Identity, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    ada = join(identity)
    monkeypatch.setattr("protocol.signing.Signed.parse", None)
    request = getattr(intake_pb2, f"{call}Request")(envelope=b"[" * 100_000)
    assert refusal(lambda: getattr(ada.intake, call)(request, timeout=DEADLINE_S)).code is Code.TOO_LARGE


def test_what_is_only_declared_takes_no_room(
    served: Served, join: Join, identity: Identity, bundle: Bundle, pool: Pool, tmp_path: Path
) -> None:
    served.spool._quota = bundle.manifest.total_bytes * 3 // 2
    ada, stranger = join(identity), Identity.generate()
    bob = join(stranger, "bob")
    other = factories.make_bundle(tmp_path / "other", pool, stranger, seed=9)
    mine, theirs = ada.begin(bundle), bob.begin(other)
    ada.put(bundle, mine)
    full = refusal(lambda: bob.put(other, theirs))
    assert (full.code, isinstance(full, Unavailable)) == (Code.STORAGE_FULL, True)
    ada.commit(mine)
    bob.submit(other)


def test_a_file_is_hashed_once_an_hour_and_not_at_every_resume(
    served: Served, join: Join, identity: Identity, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = join(identity)
    ada.submit(bundle)
    accept(served, bundle.digest)
    gates, verify, hashed = bundle.manifest.files[GATES].sha256, served.store.verify, 0

    def counted(sha256: str) -> bool:
        nonlocal hashed
        hashed += 1
        return verify(sha256)

    monkeypatch.setattr(served.store, "verify", counted)
    for offset in (0, 100, 200):
        assert ada.fetch(gates, offset) == (bundle.folder / GATES).read_bytes()[offset:]
    assert hashed == 1
    monkeypatch.setattr("coordinator.storage.blobs._BELIEVED_S", 0.0)
    ada.fetch(gates)
    assert hashed == 2


def test_who_fetches_and_cancels_holds_nobody_else_up(
    served: Served, join: Join, identity: Identity, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = join(identity)
    ada.submit(bundle)
    accept(served, bundle.digest)
    gates, hashing, goes_on = bundle.manifest.files[GATES].sha256, threading.Event(), threading.Event()

    def slow(_: str) -> bool:
        hashing.set()
        return goes_on.wait(30)

    monkeypatch.setattr(served.store, "verify", slow)
    try:
        for _ in range(min(32, (os.cpu_count() or 1) + 4)):  # so many threads has an event loop
            hashing.clear()
            call = ada.catalog.Fetch(catalog_pb2.FetchRequest(sha256=gates), timeout=DEADLINE_S)
            hashing.wait(0.05)
            call.cancel()
        request = intake_pb2.StatusRequest(digest=bundle.digest)
        assert ada.intake.Status(request, timeout=5).state == "accepted"
    finally:
        goes_on.set()


def test_sweeping_forgets_expired_uploads(served: Served, join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    ada.put(bundle, ada.begin(bundle), CARD)
    served.clock.forward(hours=1)
    served.intake.sweep()
    assert served.spool.path(bundle.digest, CARD).exists()
    served.clock.now += timedelta(hours=24)
    served.intake.sweep()
    assert list(served.spool._folder.iterdir()) == []
    assert served.registry.uploads.digests() == set()
