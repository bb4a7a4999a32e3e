"""Sending a bundle to a coordinator that breaks, refuses, lies or dies."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.progress import Progress
from client.submission import upload
from client.submission.join import enrol
from protocol.bundle import ADAPTER_WEIGHTS, Bundle
from protocol.documents import Pool, Receipt
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.signing import Identity
from protocol.v1.intake_pb2 import StatusReply
from protocol.wire.chunks import CHUNK_BYTES
from tests import factories
from tests.client.conftest import NOW
from tests.client.fake_coordinator import FakeCoordinator, serving


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def fake(t5_pool: Pool, operator: Identity) -> FakeCoordinator:
    return FakeCoordinator(t5_pool, operator)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def coordinator(fake: FakeCoordinator, clock: Clock) -> Iterator[upload.Coordinator]:
    with serving(fake) as address:
        yield upload.Coordinator(address, give_up_after_s=60, sleep=clock.sleep, clock=lambda: clock.now)


@pytest.fixture
def bundle(tmp_path: Path, t5_pool: Pool, identity: Identity) -> Bundle:
    return factories.make_bundle(tmp_path / "bundle", t5_pool, identity)


@pytest.fixture
def big_bundle(tmp_path: Path, t5_pool: Pool, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """One whose adapter takes several chunks."""
    monkeypatch.setattr("protocol.wire.chunks.CHUNK_BYTES", 4096)
    return factories.make_bundle(tmp_path / "bundle", t5_pool, identity, rank=16)


def send(
    bundle: Bundle, identity: Identity, coordinator: upload.Coordinator, pool: Pool, seen: list[Progress] | None = None
) -> Receipt:
    report = (lambda _: None) if seen is None else seen.append
    return upload.submit(bundle, enrol(pool, "anna", identity, NOW), lambda _: pool, coordinator, report)[0]


def arrived(fake: FakeCoordinator, bundle: Bundle) -> bool:
    return all(
        bytes(fake.files[bundle.digest, name]) == (bundle.folder / name).read_bytes() for name in bundle.manifest.files
    )


def test_a_bundle_arrives_and_the_receipt_is_right(
    fake: FakeCoordinator, bundle: Bundle, identity: Identity, coordinator: upload.Coordinator, t5_pool: Pool
) -> None:
    seen: list[Progress] = []
    receipt = send(bundle, identity, coordinator, t5_pool, seen)
    assert (receipt.bundle, receipt.contributor) == (bundle.digest, identity.public.hex)
    assert arrived(fake, bundle)
    assert fake.names == {identity.public.hex: "anna"}
    steps = [event.step for event in seen]
    assert steps == sorted(steps)
    assert seen[-1] == Progress("upload", bundle.manifest.total_bytes, bundle.manifest.total_bytes)


def test_sending_twice_gives_the_same_receipt_and_sends_no_byte(
    fake: FakeCoordinator, bundle: Bundle, identity: Identity, coordinator: upload.Coordinator, t5_pool: Pool
) -> None:
    first = send(bundle, identity, coordinator, t5_pool)
    fake.calls.clear()
    assert send(bundle, identity, coordinator, t5_pool) == first
    assert fake.calls == ["Enrol", "Begin"]


def test_a_broken_stream_continues_from_what_arrived(
    fake: FakeCoordinator,
    big_bundle: Bundle,
    identity: Identity,
    coordinator: upload.Coordinator,
    clock: Clock,
    t5_pool: Pool,
) -> None:
    fake.break_after = [10**9, 8192, 8192]
    send(big_bundle, identity, coordinator, t5_pool)
    assert arrived(fake, big_bundle)
    offsets = [offset for name, offset in fake.put_offsets if name == ADAPTER_WEIGHTS]
    assert offsets == [0, 8192, 16384]
    assert len(clock.pauses) == 2


def test_pauses_grow_and_patience_ends(
    fake: FakeCoordinator,
    bundle: Bundle,
    identity: Identity,
    coordinator: upload.Coordinator,
    clock: Clock,
    t5_pool: Pool,
) -> None:
    fake.fail["Begin"] = [Unavailable(Code.INTERNAL, "it broke") for _ in range(99)]
    with pytest.raises(Unavailable, match="it broke"):
        send(bundle, identity, coordinator, t5_pool)
    assert 20 < clock.now <= 60
    assert max(clock.pauses) <= upload.LONGEST_PAUSE_S
    assert all(low <= 0.5 * 2**k <= 2 * low for k, low in enumerate(clock.pauses[:5]))


@pytest.mark.parametrize(
    "error",
    [
        Refused(Code.SESSION_UNKNOWN, "forgotten"),
        Refused(Code.OFFSET_MISMATCH, "not there"),
        Refused(Code.CHUNK_CORRUPT, "damaged"),
        Unavailable(Code.BUSY, "busy"),
    ],
    ids=lambda error: error.code.name,
)
def test_what_a_new_session_heals_is_tried_again(
    fake: FakeCoordinator,
    bundle: Bundle,
    identity: Identity,
    coordinator: upload.Coordinator,
    t5_pool: Pool,
    error: GreylagError,
) -> None:
    fake.fail["Put"] = [error]
    send(bundle, identity, coordinator, t5_pool)
    assert arrived(fake, bundle)


@pytest.mark.parametrize("code", [Code.QUOTA, Code.KEY_REVOKED, Code.NAME_TAKEN, Code.VERSION_REUSED])
def test_a_refusal_is_final(
    fake: FakeCoordinator,
    bundle: Bundle,
    identity: Identity,
    coordinator: upload.Coordinator,
    t5_pool: Pool,
    code: Code,
) -> None:
    fake.fail["Begin"] = [Refused(code, "no", "do that")]
    with pytest.raises(Refused) as refused:
        send(bundle, identity, coordinator, t5_pool)
    assert (refused.value.code, refused.value.hint) == (code, "do that")
    assert fake.calls == ["Enrol", "Begin"]


def test_damage_on_the_way_is_sent_once_more(
    fake: FakeCoordinator, bundle: Bundle, identity: Identity, coordinator: upload.Coordinator, t5_pool: Pool
) -> None:
    damaged = Refused(Code.DIGEST_MISMATCH, "damaged")
    fake.fail["Commit"] = [damaged]
    send(bundle, identity, coordinator, t5_pool)
    fake.kept.clear()
    fake.fail["Commit"] = [damaged, damaged]
    with pytest.raises(Refused, match="damaged"):
        send(bundle, identity, coordinator, t5_pool)


def test_damage_on_our_own_disk_is_not_blamed_on_the_way(
    fake: FakeCoordinator, bundle: Bundle, identity: Identity, coordinator: upload.Coordinator, t5_pool: Pool
) -> None:
    path = bundle.folder / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(Refused) as refused:
        send(bundle, identity, coordinator, t5_pool)
    assert refused.value.code is Code.DIGEST_MISMATCH
    assert fake.calls.count("Commit") == 1


def test_a_receipt_by_another_key_is_no_receipt(
    fake: FakeCoordinator, bundle: Bundle, identity: Identity, coordinator: upload.Coordinator, t5_pool: Pool
) -> None:
    fake.receipt_key = Identity.generate()
    with pytest.raises(Refused) as refused:
        send(bundle, identity, coordinator, t5_pool)
    assert refused.value.code is Code.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("field", "code", "words"),
    [
        ("bundle", Code.UNTRUSTED, "for another bundle"),
        ("contributor", Code.UNTRUSTED, "for another contributor"),
        ("pool", Code.WRONG_POOL, "belongs to another pool"),
    ],
)
def test_a_receipt_that_says_otherwise_is_no_receipt(
    fake: FakeCoordinator,
    bundle: Bundle,
    identity: Identity,
    coordinator: upload.Coordinator,
    t5_pool: Pool,
    field: str,
    code: Code,
    words: str,
) -> None:
    fake.receipt_says = {field: "0" * 64}
    with pytest.raises(Refused, match=words) as refused:
        send(bundle, identity, coordinator, t5_pool)
    assert refused.value.code is code


def test_a_coordinator_cannot_ask_for_other_files(
    fake: FakeCoordinator, bundle: Bundle, identity: Identity, coordinator: upload.Coordinator, t5_pool: Pool
) -> None:
    fake.also_missing = "../contributor.key"
    with pytest.raises(Refused) as refused:
        send(bundle, identity, coordinator, t5_pool)
    assert refused.value.code is Code.BAD_WIRE
    assert "Put" not in fake.calls


def test_an_unreachable_coordinator_is_a_sentence(bundle: Bundle, identity: Identity, t5_pool: Pool) -> None:
    nobody = upload.Coordinator("127.0.0.1:1", give_up_after_s=0)
    with pytest.raises(Unavailable) as unavailable:
        send(bundle, identity, nobody, t5_pool)
    assert unavailable.value.code is Code.UNREACHABLE


@pytest.mark.parametrize(("answered", "patience_s"), [(False, upload.UNKNOWN_S), (True, 600.0)])
def test_who_never_answered_is_given_up_soon_and_trying_again_is_said_once(
    bundle: Bundle, identity: Identity, clock: Clock, t5_pool: Pool, monkeypatch: pytest.MonkeyPatch,
    answered: bool, patience_s: float,  # noqa: FBT001 - a parameter of the test
) -> None:  # fmt: skip
    def attempt(transfer: upload.Transfer, _: upload.Coordinator) -> bytes:
        transfer.answered = answered
        raise Unavailable(Code.UNREACHABLE, "It is gone.")

    monkeypatch.setattr(upload.Transfer, "attempt", attempt)
    said: list[str] = []
    nobody = upload.Coordinator("127.0.0.1:1", say=said.append, sleep=clock.sleep, clock=lambda: clock.now)
    with pytest.raises(Unavailable, match="It is gone"):
        send(bundle, identity, nobody, t5_pool)
    assert 0.3 * patience_s < clock.now <= patience_s
    assert said == [f"It is gone. Trying again for up to {patience_s:g} s."]


def test_waiting_ends_with_the_verdict(
    fake: FakeCoordinator, bundle: Bundle, coordinator: upload.Coordinator, clock: Clock
) -> None:
    fake.states = [StatusReply(state="received"), StatusReply(state="verified"), StatusReply(state="accepted")]
    assert upload.wait(bundle.digest, coordinator, lambda reply: reply.state == "accepted").state == "accepted"
    assert len(clock.pauses) == 2


def test_waiting_ends_with_patience(
    fake: FakeCoordinator, bundle: Bundle, coordinator: upload.Coordinator, clock: Clock
) -> None:
    fake.states = [StatusReply(state="quarantined")]
    assert upload.wait(bundle.digest, coordinator, lambda _: False).state == "quarantined"
    assert clock.now == pytest.approx(60, abs=upload.POLL_S)


def test_memory_does_not_grow_with_the_bundle(bundle: Bundle, t5_pool: Pool) -> None:
    with (bundle.folder / ADAPTER_WEIGHTS).open("ab") as file:
        file.truncate(64 << 20)
    parts = upload.Transfer(bundle, b"", lambda _: None, lambda _: t5_pool)._parts(b"", ADAPTER_WEIGHTS, 0, 0)
    tracemalloc.start()
    try:
        assert sum(len(part.chunk.data) for part in parts) == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 8 * CHUNK_BYTES
    finally:
        tracemalloc.stop()
