"""What a reader believes of a log that lies: nothing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from protocol.errors import Code, GreylagError, Refused
from protocol.log.checkpoint import read_checkpoint
from protocol.log.note import NoteKey, SignatureType, cosign
from protocol.log.reader import Logged, LogReader, Quorum
from protocol.signing import Identity
from protocol.v1 import log_pb2
from protocol.v1.log_pb2_grpc import LogStub, add_LogServicer_to_server
from protocol.wire.grpc_status import from_rpc_error
from tests.protocol import samples
from tests.protocol.ledger import Ledger
from tests.protocol.samples import CONTRIBUTOR, COORDINATOR, STRANGER

POOL = samples.pool()
NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)
ONE, TWO = (
    NoteKey(f"w{number}.example.org", key.public, SignatureType.WITNESS)
    for number, key in enumerate((CONTRIBUTOR, STRANGER), 1)
)


@contextmanager
def spoken_to(ledger: Ledger) -> Iterator[LogStub]:
    server = grpc.server(ThreadPoolExecutor(2))
    add_LogServicer_to_server(ledger, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield LogStub(channel)
    finally:
        server.stop(0).wait()


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger(POOL, COORDINATOR)
    for number in range(1, 8):
        ledger.tell("bundle", f"{number:064x}", "received")
    return ledger


@pytest.fixture
def stub(ledger: Ledger) -> Iterator[LogStub]:
    with spoken_to(ledger) as stub:
        yield stub


@contextmanager
def refusing(code: Code) -> Iterator[None]:
    with pytest.raises((GreylagError, grpc.RpcError)) as error:
        yield
    found = error.value
    assert (found if isinstance(found, GreylagError) else from_rpc_error(found, "the log")).code is code  # type: ignore[arg-type]


def test_a_proof_is_kept_and_needs_no_log(ledger: Ledger, stub: LogStub, tmp_path: Path) -> None:
    logged = LogReader(stub, POOL, tmp_path / "seen").find("bundle", f"{3:064x}", "received")
    leaf, head = logged.verify(POOL)
    assert (leaf.number, leaf.subject, head) == (4, f"{3:064x}", ledger.head)
    assert Logged.model_validate_json(logged.model_dump_json()) == logged
    for change in ({"index": 4}, {"leaf": ledger.leaves[5].decode()}, {"hashes": logged.hashes[1:]}):
        with refusing(Code.LOG_OMISSION):
            logged.model_copy(update=change).verify(POOL)


def test_a_log_that_grows_is_followed(ledger: Ledger, stub: LogStub, tmp_path: Path) -> None:
    for number in range(20, 40):
        LogReader(stub, POOL, tmp_path / "seen")
        assert read_checkpoint((tmp_path / "seen").read_bytes(), POOL) == ledger.head
        ledger.tell("bundle", f"{number:064x}", "received")
    assert LogReader(stub, POOL, tmp_path / "seen").head == ledger.head


def test_a_dropped_entry_is_noticed(ledger: Ledger, stub: LogStub, tmp_path: Path) -> None:
    with refusing(Code.LOG_OMISSION):
        LogReader(stub, POOL, tmp_path / "seen").find("bundle", "f" * 64, "received")
    ledger.leaves.pop()
    with refusing(Code.LOG_ROLLBACK):
        LogReader(stub, POOL, tmp_path / "seen")
    proof = (tmp_path / "log-contradiction.txt").read_text()
    assert "\n8\n" in proof
    assert "\n7\n" in proof
    assert read_checkpoint((tmp_path / "seen").read_bytes(), POOL).size == 8, "what was seen is not forgotten"


@pytest.mark.parametrize("grown", [0, 5])
def test_a_swapped_entry_is_noticed(ledger: Ledger, stub: LogStub, tmp_path: Path, grown: int) -> None:
    LogReader(stub, POOL, tmp_path / "seen")
    ledger.leaves[2] = ledger.leaves[2].replace(b"received", b"refused0")
    for number in range(grown):
        ledger.tell("bundle", f"{90 + number:064x}", "received")
    for _ in range(2):
        with refusing(Code.LOG_FORK):
            LogReader(stub, POOL, tmp_path / "seen")


def test_another_entry_than_was_asked_for_is_noticed(ledger: Ledger, stub: LogStub, tmp_path: Path) -> None:
    reader = LogReader(stub, POOL, tmp_path / "seen")
    wrong = ledger.leaves[3].replace(b'"number":4', b'"number":5')
    ledger.leaves[3] = wrong
    with refusing(Code.LOG_OMISSION):
        reader.find("bundle", f"{3:064x}", "received")
    ledger.leaves[3] = wrong.replace(b'"number":5', b'"number":4').replace(b"worker", b"operator")
    with refusing(Code.LOG_OMISSION):
        reader.find("bundle", f"{3:064x}", "received")


class Elusive(Ledger):
    """Proves, rightly, an entry that nobody asked for."""

    def GetInclusion(self, request: log_pb2.GetInclusionRequest, context: object) -> log_pb2.GetInclusionReply:  # noqa: N802 - gRPC's
        request.subject = f"{1:064x}"
        return super().GetInclusion(request, context)


def test_a_proof_of_what_was_not_asked_for_is_none(tmp_path: Path) -> None:
    elusive = Elusive(POOL, COORDINATOR)
    for number in (1, 2):
        elusive.tell("bundle", f"{number:064x}", "received")
    with spoken_to(elusive) as stub:
        reader = LogReader(stub, POOL, tmp_path / "seen")
        reader.find("bundle", f"{1:064x}", "received")
        with refusing(Code.LOG_OMISSION):
            reader.find("bundle", f"{2:064x}", "received")


def test_strangers_checkpoints_are_not_believed(ledger: Ledger, stub: LogStub, tmp_path: Path) -> None:
    ledger.identity = Identity.generate()
    with refusing(Code.BAD_SIGNATURE):
        LogReader(stub, POOL, tmp_path / "seen")
    assert not (tmp_path / "seen").exists()


def test_a_file_of_what_was_seen_that_is_damaged_is_named(stub: LogStub, tmp_path: Path) -> None:
    (tmp_path / "seen").write_bytes(b"?")
    with pytest.raises(Refused, match="seen is damaged"):
        LogReader(stub, POOL, tmp_path / "seen")


def test_enough_witnesses_must_have_signed(ledger: Ledger, stub: LogStub, tmp_path: Path) -> None:
    def look(needed: int, number: int = 3) -> Logged:
        reader = LogReader(stub, POOL, tmp_path / "seen", Quorum((ONE, TWO), needed))
        return reader.find("bundle", f"{number:064x}", "received")

    look(0)
    with refusing(Code.LOG_UNWITNESSED):
        look(1)
    # Each at another size, and both before what comes last.
    ledger.cosigned.append(cosign(ledger.head.note, ONE.name, CONTRIBUTOR, now=NOON).encode())
    ledger.tell("bundle", f"{8:064x}", "received")
    ledger.cosigned.append(cosign(ledger.head.note, TWO.name, STRANGER, now=NOON).encode())
    ledger.tell("bundle", f"{9:064x}", "received")
    look(2)
    look(1, 8)
    for needed, number in ((2, 8), (1, 9)):
        with refusing(Code.LOG_UNWITNESSED):
            look(needed, number)
    ledger.cosigned = ledger.cosigned[:1] * 2
    with refusing(Code.LOG_UNWITNESSED):
        look(2)


def test_a_witness_that_signed_for_another_log_is_proof_of_it(ledger: Ledger, stub: LogStub, tmp_path: Path) -> None:
    other = Ledger(POOL, COORDINATOR)
    for number in range(1, 6):
        other.tell("bundle", f"{number:064x}", "refused")
    ledger.cosigned.append(cosign(other.head.note, ONE.name, CONTRIBUTOR, now=NOON).encode())
    with refusing(Code.LOG_FORK):
        LogReader(stub, POOL, tmp_path / "seen", Quorum((ONE,), 1)).find("bundle", f"{3:064x}", "received")
    assert (tmp_path / "log-contradiction.txt").exists()


def test_a_reader_says_who_must_have_signed() -> None:
    keys = [str(ONE), str(TWO)]
    assert Quorum.read(keys, None) == Quorum((ONE, TWO), 2)
    assert Quorum.read(keys, 1) == Quorum((ONE, TWO), 1)
    assert Quorum.read([], None) == Quorum()
    with refusing(Code.SETTINGS_INVALID):
        Quorum.read(keys, 3)
    with refusing(Code.KEY_TYPE):
        Quorum.read(["nobody"], None)
