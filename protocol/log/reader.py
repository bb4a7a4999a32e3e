"""Reads a pool's log over the wire, believes nothing of it that is not proved, and remembers how far it was seen."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from protocol.documents import Pool
from protocol.errors import Code, Refused, Unavailable
from protocol.files.atomic import write_whole
from protocol.log import merkle
from protocol.log.checkpoint import Checkpoint, read_checkpoint
from protocol.log.leaf import LogLeaf, read_leaf
from protocol.log.merkle import leaf_hash
from protocol.log.note import NoteKey
from protocol.spec import Sha256
from protocol.statement import Strict
from protocol.v1 import log_pb2
from protocol.v1.log_pb2_grpc import LogStub
from protocol.wire.grpc_client import DEADLINE_S


class Logged(Strict):
    """That a log holds an entry, for whoever knows the pool: it needs no network to be verified."""

    leaf: str
    """The entry as it is hashed."""
    index: Annotated[int, Field(ge=0)]
    hashes: tuple[Sha256, ...]
    """The inclusion proof."""
    checkpoint: str

    def verify(self, pool: Pool) -> tuple[LogLeaf, Checkpoint]:
        """Return the entry, and the log's head that it is under.

        Raises:
            Refused: `LOG_OMISSION`, or as `read_checkpoint` and `read_leaf`.
        """
        head, raw = read_checkpoint(self.checkpoint.encode(), pool), self.leaf.encode()
        _check_included(raw, self.index, [bytes.fromhex(each) for each in self.hashes], head)
        return read_leaf(raw), head


class LogReader:
    """One look at a log.

    Args:
        stub: Speaks to the coordinator.
        pool: The pool.
        seen: File of the last checkpoint that was seen; made at the first look.
        witnesses: Who may sign for the log beside the coordinator.
        needed: How many of them must have signed for what is looked up.
    """

    def __init__(
        self, stub: LogStub, pool: Pool, seen: Path, witnesses: tuple[NoteKey, ...] = (), needed: int = 0
    ) -> None:
        self._stub, self._pool, self._seen = stub, pool, seen
        self._witnesses, self._needed = witnesses, needed
        reply = stub.GetCheckpoint(log_pb2.GetCheckpointRequest(), timeout=DEADLINE_S)
        self.head, self._cosigned = read_checkpoint(reply.checkpoint, pool), list(reply.cosigned)
        """The log as it is."""
        last = self._last_seen() if seen.exists() else None
        if last is not None:
            self.check_continues(last)
        if last is None or last.size < self.head.size:
            write_whole(seen, self.head.note.encode())

    def check_continues(self, earlier: Checkpoint) -> None:
        """Refuse a log that has lost or changed what an earlier checkpoint signed for.

        Raises:
            Refused: `LOG_ROLLBACK` or `LOG_FORK`; both checkpoints are kept, since they prove it to anybody.
        """
        if earlier.size > self.head.size:
            what = f"has {self.head.size} entries, and {earlier.size} were signed for"
            raise self._accuse(Code.LOG_ROLLBACK, what, earlier)
        proof: list[bytes] = []
        if 0 < earlier.size < self.head.size:
            request = log_pb2.GetConsistencyRequest(first=earlier.size, second=self.head.size)
            proof = list(self._stub.GetConsistency(request, timeout=DEADLINE_S).hashes)
        if not merkle.continues(earlier.size, earlier.root, self.head.size, self.head.root, proof):
            raise self._accuse(Code.LOG_FORK, f"does not continue what was signed for at {earlier.size}", earlier)

    def find(self, kind: str, subject: str, step: str) -> Logged:
        """Prove that the log says something.

        Raises:
            Refused: `LOG_OMISSION`.
            Unavailable: `LOG_UNWITNESSED`.
        """
        request = log_pb2.GetInclusionRequest(size=self.head.size, kind=kind, subject=subject, step=step)
        reply = self._stub.GetInclusion(request, timeout=DEADLINE_S)
        leaf = read_leaf(reply.leaf)
        if (leaf.kind, leaf.subject, leaf.step, leaf.number) != (kind, subject, step, reply.index + 1):
            raise _omission(f"The coordinator proves another entry than that the {kind} {subject[:16]} is {step}.")
        _check_included(reply.leaf, reply.index, list(reply.hashes), self.head)
        self._check_witnessed(reply.index)
        return Logged(
            leaf=reply.leaf.decode(), index=reply.index, hashes=tuple(each.hex() for each in reply.hashes),
            checkpoint=self.head.text(),
        )  # fmt: skip

    def _check_witnessed(self, index: int) -> None:
        """Refuse an entry for which fewer witnesses than are needed have signed."""
        signed = set[NoteKey]()
        for raw in self._cosigned if self._needed else ():
            cosigned = read_checkpoint(raw, self._pool)
            by = {key for key in self._witnesses if cosigned.note.signed_by(key)}
            for key in by:
                cosigned.note.verify(key)
            if cosigned.size > index and by - signed:
                self.check_continues(cosigned)
                signed.update(by)
        if len(signed) < self._needed:
            raise Unavailable(
                Code.LOG_UNWITNESSED,
                f"{len(signed)} of {self._needed} witnesses have signed for entry {index + 1} of the log.",
                "Try again in a minute; if that goes on, ask the witnesses what they see of this pool.",
            )

    def _last_seen(self) -> Checkpoint:
        try:
            return read_checkpoint(self._seen.read_bytes(), self._pool)
        except Refused as error:
            hint = "Restore it from a copy; without it, an earlier log would be believed."
            raise Refused(error.code, f"{self._seen} is damaged: {error.message}", hint) from error

    def _accuse(self, code: Code, what: str, earlier: Checkpoint) -> Refused:
        proof = self._seen.with_name("log-contradiction.txt")
        write_whole(proof, earlier.note.encode() + b"\n" + self.head.note.encode())
        return Refused(
            code,
            f"The coordinator's log {what}.",
            f"An older copy was restored, or different people are shown different logs: show the operator {proof}, in "
            "which both checkpoints are.",
        )


def _check_included(raw: bytes, index: int, hashes: list[bytes], head: Checkpoint) -> None:
    if not merkle.is_included(leaf_hash(raw), index, head.size, hashes, head.root):
        raise _omission(f"The coordinator does not prove that its log holds entry {index + 1}.")


def _omission(what: str) -> Refused:
    return Refused(Code.LOG_OMISSION, what, "Tell the pool's operator, and others who follow the pool.")
