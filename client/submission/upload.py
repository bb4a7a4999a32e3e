"""The one way out: a signed bundle goes to the coordinator, resumes, and comes back as a receipt.

A broken stream keeps what arrived, so each new attempt begins again and continues from the offsets
that the coordinator names. At no time is more than one chunk of a file in memory.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from client.progress import Progress, Report
from protocol.bundle import Bundle, check_file
from protocol.documents import Pool, Receipt, read_receipt
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.v1.chunk_pb2 import Chunk
from protocol.v1.intake_pb2 import (
    BeginReply,
    BeginRequest,
    CommitRequest,
    EnrolRequest,
    PutRequest,
    PutStart,
    StatusReply,
    StatusRequest,
)
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire.chunks import read_chunks
from protocol.wire.grpc_client import DEADLINE_S, STREAM_DEADLINE_S, connect

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
POLL_S = 1.0
GIVE_UP_AFTER_S, UNKNOWN_S = 600.0, 3.0
"""Patience without any progress, and with an address where nobody has answered yet, in seconds."""
QUIET_S = 10.0
"""Seconds of waiting for a verdict after which that is said."""
KeepUp = Callable[[grpc.Channel], Pool]
_BEGIN_AGAIN = {
    Code.UNREACHABLE, Code.BUSY, Code.INTERNAL, Code.SESSION_UNKNOWN, Code.OFFSET_MISMATCH,
    Code.MISSING_RANGES, Code.CHUNK_CORRUPT,
}  # fmt: skip
_DAMAGED = {Code.DIGEST_MISMATCH, Code.SIZE_MISMATCH}


@dataclass(frozen=True)
class Coordinator:
    """Whom to talk to, and how patiently.

    Args:
        address: `host:port`.
        ca: CA certificate, PEM.
        give_up_after_s: Seconds without any progress after which a transfer or a wait ends; None for ten minutes, or
            a few seconds where nobody has answered yet, since the address may be wrong.
        say: Told once when trying again begins.
        sleep: Waits for seconds.
        clock: A monotonic clock, in seconds.
    """

    address: str
    ca: Path | None = None
    give_up_after_s: float | None = None
    say: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def patience_s(self, *, reached: bool) -> float:
        """Seconds without progress after which to give up, where the coordinator has answered before or not."""
        if self.give_up_after_s is not None:
            return self.give_up_after_s
        return GIVE_UP_AFTER_S if reached else UNKNOWN_S


def submit(
    bundle: Bundle, enrolment: bytes, pool: KeepUp, coordinator: Coordinator, report: Report
) -> tuple[Receipt, bytes]:
    """Send a bundle until the coordinator's receipt for it is here.

    Args:
        bundle: The bundle.
        enrolment: The introduction of its key.
        pool: Asks the coordinator for the pool as it is, with the key that signs receipts now.
        coordinator: Whom to send it to.
        report: Told how far it is.

    Returns:
        The receipt, read and as signed.

    Raises:
        Refused: What the coordinator refuses with, or `UNTRUSTED` for a receipt that is not right.
        Unavailable: `UNREACHABLE`, `BUSY` or `STORAGE_FULL`.
    """
    transfer = Transfer(bundle, enrolment, report, pool)
    patience = _Patience(coordinator)
    damaged = False
    while True:
        held = transfer.furthest
        try:
            envelope, known = transfer.attempt(coordinator)
            return _check_receipt(envelope, bundle, known), envelope
        except GreylagError as error:
            if error.code in _DAMAGED and not damaged:
                for name, file in bundle.manifest.files.items():
                    check_file(bundle.folder / name, file)  # raises if our own disk is to blame
                damaged = True  # on the way: once more
                continue
            patience.after(error, progressed=transfer.furthest > held, reached=transfer.answered)


def status(digest: str, coordinator: Coordinator) -> StatusReply:
    """Ask what became of a bundle.

    Raises:
        Refused: `BUNDLE_UNKNOWN`.
        Unavailable: `UNREACHABLE` or `BUSY`.
    """
    with connect(coordinator.address, coordinator.ca) as channel:
        return IntakeStub(channel).Status(StatusRequest(digest=digest), timeout=DEADLINE_S)


def wait(digest: str, coordinator: Coordinator, decided: Callable[[StatusReply], bool]) -> StatusReply:
    """Ask until a bundle is decided or patience ends; either way return the last answer.

    Raises:
        Refused: `BUNDLE_UNKNOWN`.
        Unavailable: `UNREACHABLE` or `BUSY` at the end of patience.
    """
    began, reached, told = coordinator.clock(), False, False
    while True:
        passed, patience = coordinator.clock() - began, coordinator.patience_s(reached=reached)
        try:
            reply = status(digest, coordinator)
        except Unavailable:
            if passed >= patience:
                raise
        else:
            reached = True
            if passed >= coordinator.patience_s(reached=True) or decided(reply):
                return reply
            if passed >= QUIET_S and not told:
                told = True
                coordinator.say(f"Nobody at {coordinator.address} has decided yet. Waiting for up to {patience:g} s.")
        coordinator.sleep(POLL_S)


class Transfer:
    """One bundle on its way; remembers how far it came."""

    def __init__(self, bundle: Bundle, enrolment: bytes, report: Report, pool: KeepUp) -> None:
        self._bundle, self._enrolment, self._report, self._pool = bundle, enrolment, report, pool
        self.furthest = 0
        """Most bytes that the coordinator was seen to hold."""
        self.answered = False
        """Whether the coordinator was ever there."""

    def attempt(self, coordinator: Coordinator) -> tuple[bytes, Pool]:
        """Go once through Enrol, Begin, Put and Commit; return the receipt, and the pool that it is to be of."""
        manifest = self._bundle.manifest
        with connect(coordinator.address, coordinator.ca) as channel:
            intake = IntakeStub(channel)
            intake.Enrol(EnrolRequest(envelope=self._enrolment), timeout=DEADLINE_S)
            self.answered = True
            pool = self._pool(channel)
            begun = intake.Begin(BeginRequest(envelope=manifest.envelope), timeout=DEADLINE_S)
            missing = self._missing(begun)
            if begun.receipt:
                self._tell(manifest.total_bytes)
                return begun.receipt, pool
            held = manifest.total_bytes - sum(manifest.files[name].size - offset for name, offset in missing.items())
            self._tell(held)
            for name, offset in missing.items():
                reply = intake.Put(self._parts(begun.token, name, offset, held), timeout=STREAM_DEADLINE_S)
                held += reply.offset - offset
                self._tell(held)
            request = CommitRequest(digest=manifest.digest, token=begun.token)
            return intake.Commit(request, timeout=DEADLINE_S).receipt, pool

    def _missing(self, begun: BeginReply) -> dict[str, int]:
        files, missing = self._bundle.manifest.files, {entry.name: entry.offset for entry in begun.missing}
        wrong = "answers about another bundle" if begun.digest != self._bundle.digest else ""
        if any(name not in files or offset > files[name].size for name, offset in missing.items()):
            wrong = "asks for a file that is not in the bundle"
        if wrong:
            raise Refused(Code.BAD_WIRE, f"The coordinator {wrong}.", "Tell its operator.")
        return missing

    def _parts(self, token: bytes, name: str, offset: int, held: int) -> Iterator[PutRequest]:
        yield PutRequest(start=PutStart(digest=self._bundle.digest, token=token, name=name))
        chunk: Chunk
        for chunk in read_chunks(self._bundle.folder / name, offset):
            yield PutRequest(chunk=chunk)
            # What was handed to the transport; the coordinator's own figure follows at the end.
            self._show(held + chunk.offset + len(chunk.data) - offset)

    def _tell(self, held: int) -> None:
        self.furthest = max(self.furthest, held)
        self._show(held)

    def _show(self, held: int) -> None:
        self._report(Progress("upload", held, self._bundle.manifest.total_bytes))


class _Patience:
    """Decides after a failure whether to try again, and waits."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._pause_s = FIRST_PAUSE_S
        self._last_progress = coordinator.clock()

    def after(self, error: GreylagError, *, progressed: bool, reached: bool) -> None:
        """Sleep before another attempt, or raise the error if there is to be none."""
        now = self._coordinator.clock()
        if progressed:
            self._last_progress, self._pause_s = now, FIRST_PAUSE_S
        if error.code not in _BEGIN_AGAIN:
            raise error
        patience_s = self._coordinator.patience_s(reached=reached or error.code is not Code.UNREACHABLE)
        if now - self._last_progress + self._pause_s > patience_s:
            raise error
        if self._pause_s == FIRST_PAUSE_S:
            self._coordinator.say(f"{error.message} Trying again for up to {patience_s:g} s.")
        # Jitter keeps many clients from coming back in the same moment.
        self._coordinator.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def _check_receipt(envelope: bytes, bundle: Bundle, pool: Pool) -> Receipt:
    receipt = read_receipt(envelope, pool)
    for what, found, expected in (
        ("bundle", receipt.bundle, bundle.digest), ("contributor", receipt.contributor, bundle.spec.contributor),
    ):  # fmt: skip
        if found != expected:
            raise Refused(Code.UNTRUSTED, f"The coordinator's receipt is for another {what}.", "Tell its operator.")
    return receipt
