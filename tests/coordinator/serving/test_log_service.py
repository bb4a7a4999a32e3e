"""The log over the wire, from a coordinator that keeps it in its registry."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.policy.lifecycle import State
from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code, GreylagError, Refused
from protocol.log.leaf import read_leaf
from protocol.log.note import NoteKey, SignatureType, cosign
from protocol.log.reader import LogReader, Quorum
from protocol.signing import Identity
from protocol.v1 import log_pb2
from protocol.v1.log_pb2_grpc import LogStub
from tests.coordinator.conftest import Served, resign
from tests.coordinator.contributor import DEADLINE_S, Contributor
from tests.coordinator.serving.conftest import Join, accept, refusal

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


@pytest.fixture
def ada(join: Join, identity: Identity) -> Contributor:
    return join(identity)


@pytest.fixture
def stub(ada: Contributor) -> LogStub:
    return LogStub(ada.channel)


def code_of(call: Callable[..., object], *arguments: object) -> Code:
    return refusal(call, *arguments).code


def test_a_yank_is_proved_to_who_followed_from_the_first_upload(
    served: Served, ada: Contributor, stub: LogStub, bundle: Bundle, pool: Pool, tmp_path: Path
) -> None:
    ada.submit(bundle)
    first = LogReader(stub, pool, tmp_path / "seen")
    first.find("bundle", bundle.digest, "received")
    assert code_of(first.find, "bundle", bundle.digest, "yanked") is Code.LOG_OMISSION
    accept(served, bundle.digest)
    for step in (State.RELEASED, State.YANKED):
        reason = Refused(Code.DECLINED, "Insults.") if step == State.YANKED else None
        served.registry.bundles.move(bundle.digest, step, actor="operator", now=served.clock(), reason=reason)
    leaf, head = LogReader(stub, pool, tmp_path / "seen").find("bundle", bundle.digest, "yanked").verify(pool)
    assert (leaf.actor, leaf.code, leaf.number, head.size) == ("operator", "DECLINED", 7, 7)
    assert code_of(first.find, "bundle", bundle.digest, "yanked") is Code.LOG_OMISSION, "it was not there then"
    assert b"Insults" not in served.checkpoints._entries.read_bytes()


def test_an_older_database_under_a_running_coordinator(
    served: Served, ada: Contributor, stub: LogStub, bundle: Bundle, pool: Pool, tmp_path: Path, identity: Identity
) -> None:
    """Restore, then upload: nothing is taken or signed for."""
    LogReader(stub, pool, tmp_path / "seen")
    ada.submit(bundle)
    LogReader(stub, pool, tmp_path / "seen").find("bundle", bundle.digest, "received")
    with served.registry.writing() as session:  # what a restored file does
        connection = session.connection()
        for table in ("bundle_files", "bundles"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        connection.exec_driver_sql("DELETE FROM events WHERE kind = 'bundle'")
        connection.exec_driver_sql("DELETE FROM log_nodes WHERE number > 0")
    for call in (
        lambda: LogReader(stub, pool, tmp_path / "seen"),
        lambda: ada.submit(resign(bundle, identity, name="another")),
        lambda: ada.submit(bundle),
        lambda: ada.enrol(pool, "ada"),
    ):
        error = refusal(call)
        assert error.code is Code.LOG_ROLLBACK
        assert "fsck --adopt" in error.hint


def test_entries_come_in_pages(served: Served, join: Join, stub: LogStub) -> None:
    for number in range(12):
        join(Identity.generate(), f"c{number}")

    def leaves(start: int, count: int) -> list[int]:
        reply = stub.GetLeaves(log_pb2.GetLeavesRequest(start=start, count=count), timeout=DEADLINE_S)
        return [read_leaf(leaf).number for leaf in reply.leaves]

    assert leaves(3, 5) == [4, 5, 6, 7, 8]
    assert leaves(10, 1 << 40) == list(range(11, served.registry.log.size() + 1))
    assert leaves(99, 5) == []
    assert leaves(0, 0) == []


def test_what_cannot_be_proved_is_refused(served: Served, ada: Contributor, stub: LogStub) -> None:
    size, key = served.registry.log.size(), ada.identity.public.hex

    def inclusion(size: int, subject: str = key, step: str = "active") -> Any:
        request = log_pb2.GetInclusionRequest(size=size, kind="contributor", subject=subject, step=step)
        return stub.GetInclusion(request, timeout=DEADLINE_S)

    def consistency(first: int, second: int) -> Any:
        request = log_pb2.GetConsistencyRequest(first=first, second=second)
        return stub.GetConsistency(request, timeout=DEADLINE_S)

    assert inclusion(size).index == size - 1
    assert list(consistency(0, size).hashes) == list(consistency(size, size).hashes) == []
    for many in (size + 1, 1 << 40, (1 << 64) - 1):
        assert code_of(inclusion, many) is Code.REQUEST_INVALID
        assert code_of(consistency, 0, many) is Code.REQUEST_INVALID
        assert code_of(consistency, many, size) is Code.REQUEST_INVALID
    for wrong in ((0,), (size, "f" * 64), (size, key, "revoked"), (size, "'; --" * 1000), (size, "\0")):
        assert code_of(inclusion, *wrong) is Code.LOG_OMISSION


def test_witnesses_that_are_known_are_shown(
    served: Served, ada: Contributor, stub: LogStub, pool: Pool, tmp_path: Path, bundle: Bundle
) -> None:
    one, stranger = Identity.generate(), Identity.generate()
    key = NoteKey("w1.example.org", one.public, SignatureType.WITNESS)
    served.witnesses.append(key)

    def add(raw: bytes) -> None:
        stub.AddCosignature(log_pb2.AddCosignatureRequest(checkpoint=raw), timeout=DEADLINE_S)

    early = served.checkpoints.newest()
    ada.submit(bundle)
    head = served.checkpoints.newest()
    for note in (head.note, cosign(head.note, key.name, stranger, now=NOON), cosign(head.note, "w2", one, now=NOON)):
        assert code_of(add, note.encode()) is Code.KEY_UNKNOWN
    both = cosign(cosign(head.note, key.name, one, now=NOON), "w2", stranger, now=NOON)
    add(both.encode())
    add(cosign(early.note, key.name, one, now=NOON).encode())
    (kept,) = served.registry.log.cosigned()
    assert kept == cosign(head.note, key.name, one, now=NOON).encode(), "the newest, and no stranger's line"
    LogReader(stub, pool, tmp_path / "seen", Quorum((key,), 1)).find("bundle", bundle.digest, "received")
    broken = kept.replace(b"w1.example.org ", b"w1.example.org A")
    with pytest.raises((GreylagError, grpc.RpcError)):
        add(broken)
