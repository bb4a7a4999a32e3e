"""Reads a pool's log over the wire, believes nothing of it that is not proved, and remembers how far it was seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

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


class Quorum(NamedTuple):
    """Who may sign for a log beside its coordinator, and how many of them must have."""

    witnesses: tuple[NoteKey, ...] = ()
    needed: int = 0

    @classmethod
    def read(cls, keys: Sequence[str], needed: int | None) -> "Quorum":
        """Read a reader's settings; without a number, all of the witnesses are needed.

        Raises:
            Refused: `SETTINGS_INVALID`, or a code of a key.
        """
        witnesses = tuple(NoteKey.parse(each) for each in keys)
        needed = len(witnesses) if needed is None else needed
        if needed > len(witnesses):
            what = f"{needed} witnesses are needed, and {len(witnesses)} are named."
            raise Refused(Code.SETTINGS_INVALID, what, "Correct the settings `witnesses` and `witnesses_needed`.")
        return cls(witnesses, needed)


NO_WITNESSES = Quorum()
"""The coordinator's word is enough."""


class LogReader:
    """One look at a log.

    Args:
        stub: Speaks to the coordinator.
        pool: The pool.
        seen: File of the last checkpoint that was seen; made at the first look.
        quorum: Who must have signed for what is looked up.
    """

    def __init__(self, stub: LogStub, pool: Pool, seen: Path, quorum: Quorum = NO_WITNESSES) -> None:
        self._stub, self._pool, self._seen, self._quorum = stub, pool, seen, quorum
        reply = stub.GetCheckpoint(log_pb2.GetCheckpointRequest(), timeout=DEADLINE_S)
        self.head, self._cosigned = read_checkpoint(reply.checkpoint, pool), list(reply.cosigned)
        """The log as it is."""
        if not self.head.current:
            what = "The newest checkpoint of the pool's log is signed by a key that was replaced."
            raise Refused(Code.BAD_SIGNATURE, what, "Tell the pool's operator: somebody may have the old key.")
        last = self._last_seen() if seen.exists() else None
        if last is not None:
            last = self._believed(last)
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
        self.check_witnessed(reply.index)
        return Logged(
            leaf=reply.leaf.decode(), index=reply.index, hashes=tuple(each.hex() for each in reply.hashes),
            checkpoint=self.head.text(),
        )  # fmt: skip

    def check_witnessed(self, index: int) -> None:
        """Refuse an entry for which fewer witnesses than are needed have signed.

        Raises:
            Refused: As `check_continues`, for a witness who was shown another log.
            Unavailable: `LOG_UNWITNESSED`.
        """
        signed, needed = set[NoteKey](), self._quorum.needed
        for raw in self._cosigned if needed else ():
            cosigned = read_checkpoint(raw, self._pool)
            by = {key for key in self._quorum.witnesses if cosigned.note.signed_by(key)}
            for key in by:
                cosigned.note.verify(key)
            if cosigned.size > index and by - signed:
                self.check_continues(cosigned)
                signed.update(by)
        if len(signed) < needed:
            raise Unavailable(
                Code.LOG_UNWITNESSED,
                f"{len(signed)} of {needed} witnesses have signed for entry {index + 1} of the log.",
                "Try again in a minute; if that goes on, ask the witnesses what they see of this pool.",
            )

    def _believed(self, last: Checkpoint) -> Checkpoint | None:
        """Refuse a log that does not continue what was seen, unless a key signed for that which people have replaced.

        Then the root says how far the log was in truth: whoever was shown another one by a thief goes on from there.
        The contradiction is kept.
        """
        try:
            self.check_continues(last)
        except Refused as contradiction:
            if last.current or contradiction.code not in (Code.LOG_ROLLBACK, Code.LOG_FORK):
                raise
            head = self._pool.duties[-1].head
            self.check_continues(Checkpoint(head.size, bytes.fromhex(head.root), self.head.note))
            return None
        return last

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
