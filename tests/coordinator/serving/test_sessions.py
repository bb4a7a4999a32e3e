"""Upload sessions, room and hashing: what many who come at once, or go away, leave to the others."""

import os
import threading
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from protocol.bundle import CARD, GATES, Bundle
from protocol.documents import Pool
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


def test_an_upload_takes_the_place_of_an_abandoned_one_of_its_name(
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
        assert refusal(lambda: ada.put(first, begun)).code is Code.SESSION_UNKNOWN
        assert list(served.spool._folder.iterdir()) == []
        assert served.registry.uploads.digests() == set()


def test_a_session_that_never_got_a_byte_ends_after_an_hour(
    tmp_path: Path, coordinator_identity: Identity, identity: Identity, clock: Clock
) -> None:
    served = limited_to_one(tmp_path, coordinator_identity, clock)
    bundle = factories.make_bundle(tmp_path / "b", served.pool, identity)
    with served.running() as address, grpc.insecure_channel(address) as channel:
        ada = Contributor(channel, identity)
        ada.enrol(served.pool, "ada")
        ada.begin(bundle)
        clock.forward(minutes=59)
        other = resign(bundle, identity, name="other")
        assert refusal(lambda: ada.begin(other)).code is Code.QUOTA
        clock.forward(minutes=1)
        ada.put(other, ada.begin(other), CARD)
        clock.forward(hours=22)
        assert refusal(lambda: ada.begin(resign(bundle, identity, name="third"))).code is Code.QUOTA


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
