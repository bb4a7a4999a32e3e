"""The gRPC door, spoken to as any client may."""

import queue
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from coordinator.policy.lifecycle import State
from protocol.bundle import ADAPTER_WEIGHTS, CARD, GATES, Bundle
from protocol.documents import Pool, read_receipt
from protocol.errors import Code, Unavailable
from protocol.release import ReleasedExpert, ReleaseSpec, read_release, sign_release
from protocol.signing import Identity
from protocol.v1 import catalog_pb2, intake_pb2
from tests import factories
from tests.coordinator.conftest import Clock, Served, make_pool, set_config
from tests.coordinator.contributor import DEADLINE_S, NOW, Contributor, enrolment, put_requests
from tests.coordinator.serving.conftest import Join, accept, refusal
from tests.protocol.raw_http2 import rude

PUT, FETCH = "greylag.v1.Intake/Put", "greylag.v1.Catalog/Fetch"


def put(ada: Contributor, requests: Iterator[intake_pb2.PutRequest]) -> int:
    return ada.intake.Put(requests, timeout=DEADLINE_S).offset


def test_from_begin_to_receipt_and_again(served: Served, join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    assert {missing.name for missing in begun.missing} == set(bundle.manifest.files)
    ada.put(bundle, begun)
    assert ada.begin(bundle).missing == []
    receipt = ada.commit(begun)
    said = read_receipt(receipt, served.pool)
    assert (said.bundle, said.contributor, said.sequence) == (bundle.digest, identity.public.hex, 1)
    assert ada.commit(begun) == ada.begin(bundle).receipt == ada.submit(bundle) == receipt
    assert ada.status(bundle.digest).state == "received"
    assert list(served.spool._folder.iterdir()) == []
    assert all(served.store.verify(file.sha256) for file in bundle.manifest.files.values())


def test_enrolment(served: Served, join: Join, identity: Identity) -> None:
    ada = join(identity)
    assert ada.enrol(served.pool, "ada") == "active"
    stranger = Identity.generate()
    assert refusal(lambda: join(stranger, "ada")).code is Code.NAME_TAKEN
    request = intake_pb2.EnrolRequest(envelope=enrolment("f" * 64, stranger, "bob"))
    assert refusal(lambda: ada.intake.Enrol(request, timeout=DEADLINE_S)).code is Code.WRONG_POOL
    forged = enrolment(served.pool.digest, stranger, "bob").replace(b'"sig":"', b'"sig":"AAAA')
    request = intake_pb2.EnrolRequest(envelope=forged)
    assert refusal(lambda: ada.intake.Enrol(request, timeout=DEADLINE_S)).code is Code.BAD_SIGNATURE
    assert Code.BAD_SIGNATURE in served.refused, "every refusal is counted"


def test_an_enrolment_is_worked_on_once(
    served: Served, join: Join, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, seen, enrol = join(identity), list[bytes](), served.intake.enrol

    def count(envelope: bytes, network: str, invite: str) -> str:
        seen.append(envelope)
        return enrol(envelope, network, invite)

    monkeypatch.setattr(served.intake, "enrol", count)
    assert ada.enrol(served.pool, "ada") == "active"
    assert len(seen) == 1


def test_approved_enrolment_waits(
    tmp_path: Path, coordinator_identity: Identity, identity: Identity, clock: Clock
) -> None:
    pool = make_pool(coordinator_identity, enrolment="approved")
    served = Served(tmp_path, pool, coordinator_identity, clock)
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    with served.running() as address, grpc.insecure_channel(address) as channel:
        ada = Contributor(channel, identity)
        assert ada.enrol(pool, "ada") == "pending"
        assert refusal(lambda: ada.begin(bundle)).code is Code.KEY_PENDING
        served.registry.contributors.set_state("ada", "active", now=clock())
        assert ada.begin(bundle).token


def test_a_config_that_is_not_derived_costs_no_disk(
    served: Served, join: Join, identity: Identity, bundle: Bundle
) -> None:
    ada = join(identity)
    evil = set_config(bundle, identity, base_model_name_or_path="evil/base")
    assert refusal(lambda: ada.begin(evil)).code is Code.CONFIG_MISMATCH
    assert (served.registry.uploads.digests(), list(served.spool._folder.iterdir())) == (set(), [])


def test_an_unknown_key_costs_no_disk(served: Served, join: Join, bundle: Bundle) -> None:
    ada = join(Identity.generate())
    assert refusal(lambda: ada.begin(bundle)).code is Code.KEY_UNKNOWN
    assert list(served.spool._folder.iterdir()) == []


def test_a_broken_stream_resumes_at_its_offset(served: Served, join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    path = bundle.folder / ADAPTER_WEIGHTS
    data = path.read_bytes()
    served.spool.path(bundle.digest, ADAPTER_WEIGHTS).write_bytes(data[:1000])
    offsets = {missing.name: missing.offset for missing in ada.begin(bundle).missing}
    assert offsets[ADAPTER_WEIGHTS] == 1000
    assert refusal(lambda: put(ada, put_requests(path, begun, ADAPTER_WEIGHTS, 0))).code is Code.OFFSET_MISMATCH
    assert put(ada, put_requests(path, begun, ADAPTER_WEIGHTS, 1000)) == len(data)
    ada.submit(bundle)


def test_commit_before_all_bytes(join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    ada.put(bundle, begun, GATES, CARD)
    assert refusal(lambda: ada.commit(begun)).code is Code.MISSING_RANGES


def test_wrong_bytes_are_forgotten_and_sent_afresh(
    served: Served, join: Join, identity: Identity, bundle: Bundle
) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    ada.put(bundle, begun)
    path = served.spool.path(bundle.digest, GATES)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert refusal(lambda: ada.commit(begun)).code is Code.DIGEST_MISMATCH
    assert [(missing.name, missing.offset) for missing in ada.begin(bundle).missing] == [(GATES, 0)]
    assert served.registry.bundles.find(bundle.digest) is None
    ada.submit(bundle)


def test_chunks_that_are_damaged_or_too_many(join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)

    def changed(data: bytes, crc_of: bytes) -> Iterator[intake_pb2.PutRequest]:
        start, first, *_ = put_requests(bundle.folder / GATES, begun, GATES, 0)
        first.chunk.data = data
        first.chunk.crc32 = zlib.crc32(crc_of)
        yield from (start, first)

    size = bundle.manifest.files[GATES].size
    assert refusal(lambda: put(ada, changed(b"x", b"y"))).code is Code.CHUNK_CORRUPT
    assert refusal(lambda: put(ada, changed(b"x" * (size + 1), b"x" * (size + 1)))).code is Code.SIZE_MISMATCH


def test_whose_session(served: Served, join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    stolen = intake_pb2.BeginReply(digest=begun.digest, token=b"\0" * 32, missing=begun.missing)
    unknown = intake_pb2.BeginReply(digest="\0" * 64, token=begun.token, missing=begun.missing)
    for wrong, code in ((stolen, Code.SESSION_DENIED), (unknown, Code.SESSION_UNKNOWN)):
        assert refusal(ada.put, bundle, wrong).code is code
        assert refusal(ada.commit, wrong).code is code
    served.clock.forward(hours=24)
    assert refusal(lambda: ada.put(bundle, begun)).code is Code.SESSION_UNKNOWN
    assert ada.begin(bundle).token != begun.token, "an expired session is a new one"


def test_a_file_that_no_bundle_has(join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    for name in ("../../escape", "adapter_model.bin", ""):
        requests = put_requests(bundle.folder / CARD, begun, name, 0)
        assert refusal(put, ada, requests).code is Code.FILE_NOT_ALLOWED


def test_streams_that_do_not_start_or_start_twice(join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    start, *chunks = put_requests(bundle.folder / CARD, ada.begin(bundle), CARD, 0)
    for requests in (chunks, [], [start, start]):
        assert refusal(put, ada, iter(requests)).code is Code.BAD_WIRE


def test_one_writer_a_file_and_no_commit_beside_it(
    served: Served, join: Join, identity: Identity, bundle: Bundle
) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    sent: queue.Queue[intake_pb2.PutRequest | None] = queue.Queue()
    start, chunk = put_requests(bundle.folder / CARD, begun, CARD, 0)
    sent.put(start)
    first = ada.intake.Put.future(iter(sent.get, None), timeout=DEADLINE_S)
    wait_until(lambda: bool(served.busy()))
    second = refusal(lambda: put(ada, put_requests(bundle.folder / CARD, begun, CARD, 0)))
    assert second.code is Code.BUSY
    assert isinstance(second, Unavailable)
    assert refusal(lambda: ada.commit(begun)).code is Code.BUSY
    ada.put(bundle, begun, GATES)  # another file of the same upload may go on
    sent.put(chunk)
    sent.put(None)
    assert first.result(DEADLINE_S).offset == bundle.manifest.files[CARD].size
    ada.submit(bundle)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_silent_stream_is_ended_and_keeps_its_bytes(
    tmp_path: Path, pool: Pool, served: Served, identity: Identity, bundle: Bundle
) -> None:
    served.idle_s = 0.2
    with served.running() as address, grpc.insecure_channel(address) as channel:
        ada = Contributor(channel, identity)
        ada.enrol(pool, "ada")
        begun = ada.begin(bundle)
        sent: queue.Queue[intake_pb2.PutRequest | None] = queue.Queue()
        for request in put_requests(bundle.folder / CARD, begun, CARD, 0):
            sent.put(request)
        ended = refusal(lambda: put(ada, iter(sent.get, None)))
        sent.put(None)
        assert ended.code is Code.BUSY
        assert CARD not in {missing.name for missing in ada.begin(bundle).missing}


def test_who_starts_a_stream_twice_is_told_so(join: Join, identity: Identity, bundle: Bundle) -> None:
    ada = join(identity)
    first, *_ = put_requests(bundle.folder / CARD, ada.begin(bundle), CARD, 0)
    error = refusal(lambda: put(ada, iter([first, first])))
    assert (error.code, error.message) == (Code.BAD_WIRE, "A stream of chunks has one start.")


def test_streams_without_a_token_take_no_place(served: Served, pool: Pool, identity: Identity, bundle: Bundle) -> None:
    served.streams = 1
    with served.running() as address, rude(int(address.rpartition(":")[2])) as silent:
        held = [silent.call(PUT) for _ in range(8)]
        unknown = intake_pb2.PutStart(digest="0" * 64, token=b"guessed", name=GATES)
        refused = [silent.call(PUT, intake_pb2.PutRequest(start=unknown), end=False) for _ in range(8)]
        assert silent.ended(*refused)
        assert not silent.ended(*held, within_s=0)
        with grpc.insecure_channel(address) as channel:
            ada = Contributor(channel, identity)
            ada.enrol(pool, "ada")
            ada.submit(bundle)


def test_whoever_leaves_files_unread_leaves_downloads_to_others(
    served: Served, pool: Pool, identity: Identity, bundle: Bundle
) -> None:
    served.streams = 8
    with served.running() as address, grpc.insecure_channel(address) as channel:
        ada = Contributor(channel, identity)
        ada.enrol(pool, "ada")
        ada.submit(bundle)
        accept(served, bundle.digest)
        gates = bundle.manifest.files[GATES].sha256
        with rude(int(address.rpartition(":")[2]), window=0) as idle:
            for _ in range(8):
                idle.call(FETCH, catalog_pb2.FetchRequest(sha256=gates))
            assert idle.how_many_ended(6, within_s=30) == 6, "a connection has a quarter of the places"
            assert idle.how_many_ended(7, within_s=0.1) == 6
            assert ada.fetch(gates) == (bundle.folder / GATES).read_bytes()


def test_the_catalog(
    served: Served, join: Join, identity: Identity, coordinator_identity: Identity, bundle: Bundle
) -> None:
    ada = join(identity)
    ada.submit(bundle)
    gates = bundle.manifest.files[GATES].sha256
    get_bundle = catalog_pb2.GetBundleRequest(digest=bundle.digest)
    assert refusal(lambda: ada.fetch(gates)).code is Code.BUNDLE_UNKNOWN, "not accepted yet"
    assert refusal(lambda: ada.catalog.GetBundle(get_bundle)).code is Code.BUNDLE_UNKNOWN
    assert refusal(lambda: ada.catalog.GetRelease(catalog_pb2.GetReleaseRequest())).code is Code.RELEASE_UNKNOWN
    accept(served, bundle.digest)
    content = (bundle.folder / GATES).read_bytes()
    assert ada.fetch(gates) == content
    assert ada.fetch(gates, 100) == content[100:]
    assert ada.fetch(gates, len(content)) == b""
    assert refusal(lambda: ada.fetch(gates, len(content) + 1)).code is Code.REQUEST_INVALID
    assert ada.catalog.GetBundle(get_bundle).envelope == bundle.manifest.envelope
    assert ada.catalog.GetPool(catalog_pb2.GetPoolRequest()).envelope == served.pool.envelope
    expert = ReleasedExpert(name="expert", contributor="ada", bundle=bundle.digest)
    release = sign_release(first_release(served.pool, expert), coordinator_identity)
    served.registry.releases.publish(release, now=served.clock())
    for number in (0, 1):
        envelope = ada.catalog.GetRelease(catalog_pb2.GetReleaseRequest(number=number)).envelope
        assert read_release(envelope, served.pool).spec.experts == (expert,)
    for number in (2, (1 << 64) - 1):
        request = catalog_pb2.GetReleaseRequest(number=number)
        assert refusal(ada.catalog.GetRelease, request).code is Code.RELEASE_UNKNOWN
    assert ada.status(bundle.digest).release == 1
    served.registry.bundles.move(bundle.digest, State.YANKED, actor="operator", now=served.clock())
    assert refusal(lambda: ada.fetch(gates)).code is Code.BUNDLE_UNKNOWN


def first_release(pool: Pool, expert: ReleasedExpert) -> ReleaseSpec:
    return ReleaseSpec(
        pool=pool.digest, number=1, previous=None, experts=(expert,), routing=pool.spec.routing, created=NOW,
        expires="2126-11-22T12:00:00Z",
    )  # fmt: skip


@pytest.mark.parametrize("digest", ["", "x", "\0" * 64, "A" * 64, "../" * 20, "f" * 64])
def test_texts_that_are_no_digests(join: Join, identity: Identity, digest: str) -> None:
    ada = join(identity)
    assert refusal(lambda: ada.fetch(digest)).code is Code.BUNDLE_UNKNOWN
    assert refusal(lambda: ada.status(digest)).code is Code.BUNDLE_UNKNOWN
    request = catalog_pb2.GetBundleRequest(digest=digest)
    assert refusal(lambda: ada.catalog.GetBundle(request)).code is Code.BUNDLE_UNKNOWN


@pytest.mark.parametrize("how", ["changed", "deleted", "deleted late"])
def test_damaged_bytes_are_never_served(
    served: Served, join: Join, identity: Identity, bundle: Bundle, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = join(identity)
    ada.submit(bundle)
    accept(served, bundle.digest)
    gates = bundle.manifest.files[GATES].sha256
    assert ada.fetch(gates)
    path = Path(served.store._key(gates))
    if how.startswith("deleted"):
        path.unlink()
        if how == "deleted late":
            monkeypatch.setattr(served.store, "is_whole", lambda _: True)
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    lost = refusal(lambda: ada.fetch(gates))
    assert lost.code is Code.STORE_DAMAGED
    assert isinstance(lost, Unavailable), "the caller did nothing wrong"


@pytest.mark.parametrize("days", [-2, 2])
def test_a_coordinator_whose_clock_is_apart_takes_bundles_and_goes_on(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path, days: int
) -> None:
    ada = join(identity)
    first = read_receipt(ada.submit(bundle), served.pool)
    served.clock.forward(days=days)
    accept(served, bundle.digest)
    second = factories.make_bundle(tmp_path / "second", served.pool, identity, name="second", seed=2)
    receipt = read_receipt(ada.submit(second), served.pool)
    assert (first.sequence, receipt.sequence) == (1, 2)
    times = [event.at for event in served.registry.events()]
    assert times == sorted(times), "the log's times never go back"
    served.clock.forward(days=-days)
    assert ada.submit(second) == ada.begin(second).receipt
