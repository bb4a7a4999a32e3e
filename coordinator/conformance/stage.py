"""Where cases are played: a coordinator that is reached, and honest contributors who know it."""

import hashlib
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.conformance.answer import AnsweredError, Expected, UnmetError, WireAnswer, find_fault
from coordinator.conformance.draft import CREATED, Draft, Unsigned, make_draft, statement
from coordinator.conformance.wire import Wire
from protocol.documents import ENROLMENT_TYPE, Pool, read_pool, read_receipt
from protocol.errors import Code, Refused, Unavailable
from protocol.signing import Identity
from protocol.v1 import catalog_pb2, intake_pb2
from protocol.v1.chunk_pb2 import Chunk
from protocol.wire.chunks import CHUNK_BYTES

_LOOK_S, _SETTLE_S = 0.3, 10.0
LET_IN = ("accepted", "released")


@dataclass(frozen=True)
class Member:
    """A contributor of this run."""

    name: str
    identity: Identity

    @property
    def key(self) -> str:
        """The public key, in hexadecimal."""
        return self.identity.public.hex


@dataclass
class Stage:
    """A coordinator, and who has enrolled with it in this run.

    Args:
        wire: The connection.
        address: `host:port`.
        tls: Whether it speaks TLS.
        tag: Of the run: names, keys and weights follow from it.
        patience_s: How long a verdict is waited for, in seconds.
    """

    wire: Wire
    address: str
    tls: bool
    tag: str
    patience_s: float
    _members: dict[str, Member] = field(default_factory=dict)
    _firsts: dict[str, Draft] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.envelope: bytes = self.wire.ask("Catalog/GetPool", catalog_pb2.GetPoolRequest()).envelope
        self.pool: Pool = read_pool(self.envelope)

    def draw(self, name: str) -> np.random.Generator:
        """Where random numbers for something come from, the same in every run of the tag."""
        return np.random.default_rng(list(hashlib.sha256(f"{self.tag}/{name}".encode()).digest()))

    def identity(self, name: str) -> Identity:
        """A key that follows from the run's tag; nobody knows it yet."""
        return Identity(Ed25519PrivateKey.from_private_bytes(self.draw(f"key {name}").bytes(32)))

    def enrolment(self, owner: str, **facts: Any) -> Unsigned:
        """An enrolment as whoever has a key presents it; a field that is given stands in place of the usual one."""
        signer = self.identity(owner)
        usual = {"pool": self.pool.digest, "name": self.called(owner), "key": signer.public.hex, "created": CREATED}
        document = statement(ENROLMENT_TYPE, {"pool": self.pool.digest}, usual | facts)
        return Unsigned(document, signer, self.pool)

    def called(self, name: str) -> str:
        """A contributor's name that no other run has taken."""
        return f"c{self.tag}-{name}"

    def enrol(self, source: Unsigned) -> str:
        """Present a key, and return its state."""
        request = intake_pb2.EnrolRequest(envelope=source.signer.sign(source.payload))
        state: str = self.wire.ask("Intake/Enrol", request).state
        return state

    def member(self, name: str) -> Member:
        """A contributor whose key is enrolled and active."""
        with self._lock:
            if name not in self._members:
                source = self.enrolment(name)
                if self.enrol(source) != "active":
                    raise Refused(Code.KEY_PENDING, "The pool approves keys one by one.", "Try one of open enrolment.")
                self._members[name] = Member(self.called(name), source.signer)
            return self._members[name]

    def draft(self, owner: str, name: str, **facts: Any) -> Draft:
        """An honest bundle of a contributor, whom nobody need know."""
        known = self._members.get(owner)
        signer = known.identity if known else self.identity(owner)
        return make_draft(self.pool, signer, name, self.draw(f"weights {owner} {name}"), facts=facts)

    def first(self, owner: str) -> Draft:
        """The bundle that an enrolled contributor brings first, and that calls about sessions are about."""
        with self._lock:
            if owner not in self._firsts:
                self.member(owner)
                self._firsts[owner] = self.draft(owner, "first")
            return self._firsts[owner]

    def begin(self, draft: Draft) -> Any:
        """Begin an upload."""
        return self.wire.ask("Intake/Begin", intake_pb2.BeginRequest(envelope=draft.envelope))

    def put(self, draft: Draft, begun: Any, **other: bytes) -> None:
        """Send what is missing; of some files, by name up to the dot, other bytes than those that were signed."""
        for missing in begun.missing:
            content = other.get(missing.name.partition(".")[0], draft.contents[missing.name])
            self.wire.stream("Intake/Put", put_requests(begun, missing.name, content, missing.offset))

    def commit(self, begun: Any) -> bytes:
        """Have an upload kept, and return the receipt."""
        request = intake_pb2.CommitRequest(digest=begun.digest, token=begun.token)
        receipt: bytes = self.wire.ask("Intake/Commit", request).receipt
        return receipt

    def submit(self, draft: Draft) -> None:
        """Bring a bundle in, and hold the receipt against it."""
        begun = self.begin(draft)
        self.put(draft, begun)
        self.check_receipt(draft, begun.receipt or self.commit(begun))

    def check_receipt(self, draft: Draft, raw: bytes) -> None:
        """Hold a receipt against its bundle."""
        receipt = read_receipt(raw, self.pool)
        if (receipt.bundle, receipt.contributor) != (draft.digest, draft.signer.public.hex):
            raise UnmetError("The receipt is for another bundle.")

    def status(self, digest: str) -> Any:
        """Ask what became of a bundle."""
        return self.wire.ask("Intake/Status", intake_pb2.StatusRequest(digest=digest))

    def judged(self, draft: Draft) -> Any:
        """Submit a bundle and wait for the verdict; a refusal is raised as an answer (`AnsweredError`)."""
        self.submit(draft)
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:
            told = self.status(draft.digest)
            # One that waits for a person says why; so does one that was refused.
            if told.state == "refused" or (told.state == "quarantined" and told.code):
                raise AnsweredError(WireAnswer(told.code, told.message, told.hint))
            if told.state in LET_IN:
                return told
            time.sleep(_LOOK_S)
        what = f"No verdict came in {self.patience_s:g} s; the bundle is {told.state}."
        raise Unavailable(Code.BUSY, what, "Start greylag-coordinator worker, or leave such cases out: --no-worker")

    def let_in(self, owner: str = "ada") -> Draft:
        """A contributor's first bundle, which was let in: from then on several may be under way."""
        draft = self.first(owner)
        self.judged(draft)
        return draft

    def settled(self, call: Callable[[], object]) -> None:
        """Make a call until nobody is in its way (`AnsweredError`): a call that ended is over on both sides soon."""
        end = time.monotonic() + _SETTLE_S
        while True:
            try:
                call()
            except AnsweredError as error:
                if error.answer.code != Code.BUSY.name or time.monotonic() > end:
                    raise
                time.sleep(_LOOK_S / 10)
            else:
                return

    def released(self, draft: Draft) -> None:
        """Wait until a bundle that was let in is in a release (`AnsweredError`, `BUSY`)."""
        end = time.monotonic() + self.patience_s
        while self.judged(draft).state != "released":
            if time.monotonic() > end:
                what = f"In {self.patience_s:g} s no release followed."
                raise Unavailable(Code.BUSY, what, "Is the pool's promotion `at-once`, and does its worker run?")
            time.sleep(_LOOK_S)

    def refuses(self, expected: Expected, call: Callable[..., object], *arguments: Any) -> None:
        """See that a call in the middle of a story is refused as it must be (`UnmetError`)."""
        answer = None
        try:
            call(*arguments)
        except AnsweredError as error:
            answer = error.answer
        if fault := find_fault(expected, answer):
            raise UnmetError(fault)


def put_requests(begun: Any, name: str, content: bytes, offset: int = 0) -> Iterator[intake_pb2.PutRequest]:
    """Write the messages of a file's way in."""
    yield start(begun, name)
    for at in range(offset, len(content), CHUNK_BYTES):
        yield chunk(at, content[at : at + CHUNK_BYTES])


def start(begun: Any, name: str) -> intake_pb2.PutRequest:
    """Say which file of an upload follows."""
    return intake_pb2.PutRequest(start=intake_pb2.PutStart(digest=begun.digest, token=begun.token, name=name))


def chunk(offset: int, data: bytes, crc32: int | None = None) -> intake_pb2.PutRequest:
    """Write a piece of a file."""
    checked = zlib.crc32(data) if crc32 is None else crc32
    return intake_pb2.PutRequest(chunk=Chunk(offset=offset, data=data, crc32=checked))
