"""Does the pool's log hold what was submitted from here, and only ever grow?"""

from typing import NamedTuple

from client.submission import outbox
from client.workspace.paths import ClientWorkspace
from protocol.documents import Pool, read_receipt
from protocol.errors import Code, Refused
from protocol.log.reader import LogReader, Quorum
from protocol.v1.log_pb2_grpc import LogStub
from protocol.wire.grpc_client import connect


class InLog(NamedTuple):
    """What the log says of one bundle."""

    digest: str
    name: str
    state: str
    """The last that the coordinator told of it."""
    entry: int
    """Its entry's number; 0 where there is a fault."""
    fault: Refused | None


class LogVerified(NamedTuple):
    """What a look at the log found."""

    size: int
    """Entries."""
    bundles: list[InLog]


def prove(workspace: ClientWorkspace, record: outbox.Record) -> outbox.Record:
    """Have the log prove that it holds a bundle that was received, unless it has, and keep the proof.

    Raises:
        Refused: As `protocol.log.reader.LogReader`.
        Unavailable: `UNREACHABLE` or `BUSY`.
    """
    if record.logged is not None:
        return record
    with connect(workspace.settings.coordinator, workspace.settings.ca) as channel:
        pool = workspace.keep_up(channel)
        kept = _proved(record, LogReader(LogStub(channel), pool, workspace.checkpoint))
    outbox.save(workspace.outbox, kept)
    return kept


def verify(workspace: ClientWorkspace) -> LogVerified:
    """Hold receipts, and what `status` heard, against the log; a proof that is not here yet is kept.

    Raises:
        Refused: `LOG_ROLLBACK` or `LOG_FORK` for a log that does not continue what was seen here, or
            `SETTINGS_INVALID` or `KEY_TYPE` for witnesses.
        Unavailable: `UNREACHABLE`, `BUSY`, or `LOG_UNWITNESSED`.
    """
    settings = workspace.settings
    with connect(settings.coordinator, settings.ca) as channel:
        pool = workspace.keep_up(channel)
        quorum = Quorum.read(settings.witnesses, settings.witnesses_needed)
        reader = LogReader(LogStub(channel), pool, workspace.checkpoint, quorum)
        found = []
        for record in outbox.load(workspace.outbox):
            try:
                kept = _check(record, reader, pool)
            except Refused as fault:
                if fault.code in (Code.LOG_ROLLBACK, Code.LOG_FORK):
                    raise
                found.append(InLog(record.digest, record.name, record.state, 0, fault))
                continue
            if kept is not record:
                outbox.save(workspace.outbox, kept)
            entry = kept.logged.index + 1 if kept.logged else 0
            found.append(InLog(record.digest, record.name, record.state, entry, None))
    return LogVerified(reader.head.size, found)


def _check(record: outbox.Record, reader: LogReader, pool: Pool) -> outbox.Record:
    """Check one bundle, and return its record with the proof in it."""
    receipt = read_receipt(record.receipt.encode(), pool)
    if receipt.bundle != record.digest:
        raise Refused(Code.UNTRUSTED, f"The receipt of {record.name} is for another bundle.", "Submit it again.")
    if record.logged is None:
        record = _proved(record, reader)
    else:
        leaf, head = record.logged.verify(pool)
        if (leaf.kind, leaf.subject, leaf.step) != ("bundle", record.digest, "received"):
            raise Refused(Code.LOG_OMISSION, f"The proof of {record.name} is for another entry.", "Submit it again.")
        reader.check_continues(head)
        reader.check_witnessed(record.logged.index)
    if record.state != "received":
        reader.find("bundle", record.digest, record.state)
    return record


def _proved(record: outbox.Record, reader: LogReader) -> outbox.Record:
    return record.model_copy(update={"logged": reader.find("bundle", record.digest, "received")})
