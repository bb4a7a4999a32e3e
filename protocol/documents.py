"""Signed documents of a pool: itself, keys that come and go, receipts; and how any document is signed and read."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import Field

from protocol import statement
from protocol.errors import Code, Refused
from protocol.signing import MAX_ENVELOPE_BYTES, Identity, PublicKey, Signed
from protocol.spec import POOL_TYPE, TIMESTAMP_FORMAT, KeyHex, Line, Name, PoolSpec, Sha256, Timestamp
from protocol.statement import Strict

ENROLMENT_TYPE = "https://greylag.org/enrolment/v1"
ROTATION_TYPE = "https://greylag.org/rotation/v1"
RECOVERY_TYPE = "https://greylag.org/recovery/v1"
RECEIPT_TYPE = "https://greylag.org/receipt/v1"


class Enrolment(Strict):
    """A key presents itself under a name; signed by that key."""

    pool: Sha256
    name: Name
    key: KeyHex
    created: Timestamp


class Rotation(Strict):
    """A contributor's new key takes the old one's place, for good; signed by both."""

    pool: Sha256
    old: KeyHex
    new: KeyHex
    created: Timestamp


class OfPool(Strict):
    """A document about a pool, which the pool's coordinator signs."""

    pool: Sha256


class Recovery(OfPool):
    """An operator's decision: a contributor's new key takes the place of one that is lost or stolen."""

    name: Name
    old: KeyHex
    new: KeyHex
    reason: Line
    created: Timestamp


class Receipt(OfPool):
    """The coordinator's word that it keeps a bundle."""

    bundle: Sha256
    contributor: KeyHex
    sequence: Annotated[int, Field(ge=1)]
    received: Timestamp


PoolDocument = TypeVar("PoolDocument", bound=OfPool)


class Duty(StrEnum):
    """What a key of the coordinator's signs while the pool is at work."""

    LOG = "log"
    """Receipts, recoveries of contributors' keys, and the log."""
    ORDERS = "orders"
    """What contributors' daemons are asked."""
    RELEASES = "releases"
    """Candidates, decisions about them, and releases."""


class LogHead(Strict):
    """How far a log had come."""

    size: Annotated[int, Field(ge=0)]
    root: Sha256


class Duties(Strict):
    """Whose keys have which duty, by the word of a root."""

    log: KeyHex
    orders: KeyHex
    releases: KeyHex
    head: LogHead
    """The log as it was when this was written: what the keys before signed against it was not the pool's doing."""


@dataclass(frozen=True)
class Pool:
    """A pool whose signature was verified."""

    digest: str
    envelope: bytes
    spec: PoolSpec
    duties: tuple[Duties, ...] = ()
    """By the pool's roots, oldest first; without any, the pool's key has all duties."""

    def key(self, duty: Duty) -> PublicKey:
        """The key that has a duty now."""
        return self.keys(duty)[0]

    def keys(self, duty: Duty) -> tuple[PublicKey, ...]:
        """All keys that have, or had, a duty, newest first."""
        held = (getattr(each, duty.value) for each in reversed(self.duties))
        return tuple(map(PublicKey.from_hex, dict.fromkeys((*held, self.spec.coordinator))))


def sign(predicate_type: str, subjects: dict[str, str], document: Strict, identity: Identity) -> bytes:
    """Sign a document about subjects (name to sha256)."""
    return identity.sign(statement.build(predicate_type, subjects, document))


def sign_pool(spec: PoolSpec, identity: Identity) -> Pool:
    """Sign a pool; its subject is the base model's weights."""
    envelope = sign(POOL_TYPE, {"base": spec.base.weights}, spec, identity)
    return Pool(Signed.parse(envelope).digest, envelope, spec)


def read_pool(envelope: bytes, trusted: PublicKey | None = None) -> Pool:
    """Verify a pool document.

    Args:
        envelope: The signed document.
        trusted: The key that must have signed it (`UNTRUSTED`); without one, the key that it names itself (trust on
            first use: the caller shows the key to a person).
    """
    signed = Signed.parse(envelope)
    spec = statement.read(PoolSpec, statement.parse(signed.payload, POOL_TYPE).predicate, what="The pool")
    key = PublicKey.from_hex(spec.coordinator)
    if trusted is not None and key != trusted:
        what = f"The pool is signed by key {key.hex[:16]}; this machine trusts {trusted.hex[:16]}."
        raise Refused(Code.UNTRUSTED, what, "Ask the operator; if the key really changed, start a new workspace.")
    signed.verify(key)
    return Pool(signed.digest, envelope, spec)


def looks_like_key(name: str) -> bool:
    """Tell whether a word would be taken for a key: 64 hexadecimal digits."""
    return statement.is_sha256(name.lower())


def check_name(name: str) -> None:
    """Refuse a contributor's name that would be taken for somebody's key (`NAME_MISLEADING`)."""
    if looks_like_key(name):
        raise Refused(Code.NAME_MISLEADING, "A name may not look like a key.", "Choose another name.")


def read_enrolment(envelope: bytes) -> Enrolment:
    """Verify that a key presents itself (`BAD_SIGNATURE`, `WEAK_KEY`, or any code of an envelope)."""
    signed = Signed.parse(envelope)
    said = statement.read(Enrolment, statement.parse(signed.payload, ENROLMENT_TYPE).predicate, what="The enrolment")
    signed.verify(PublicKey.from_hex(said.key))
    return said


def sign_rotation(pool: Pool, old: Identity, new: Identity, now: datetime) -> bytes:
    """Have both keys say that one takes the other's place."""
    rotation = Rotation(pool=pool.digest, old=old.public.hex, new=new.public.hex, created=timestamp(now))
    return new.countersign(Signed.parse(sign(ROTATION_TYPE, {"pool": pool.digest}, rotation, old)))


def read_rotation(envelope: bytes) -> Rotation:
    """Verify that both keys say so (`BAD_SIGNATURE`, `WEAK_KEY`, or any code of an envelope)."""
    signed = Signed.parse(envelope)
    said = statement.read(Rotation, statement.parse(signed.payload, ROTATION_TYPE).predicate, what="The rotation")
    for key in (said.old, said.new):
        signed.verify(PublicKey.from_hex(key))
    return said


def read_receipt(envelope: bytes, pool: Pool) -> Receipt:
    """Verify a receipt of a pool's coordinator; refuses as `read_of_pool`."""
    return read_of_pool(Receipt, RECEIPT_TYPE, envelope, pool, Duty.LOG)[1]


def timestamp(moment: datetime) -> str:
    """Write an aware time as the documents do: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime(TIMESTAMP_FORMAT)


def read_timestamp(text: str) -> datetime:
    """Inverse of `timestamp`."""
    return datetime.strptime(text, TIMESTAMP_FORMAT).replace(tzinfo=UTC)


def read_of_pool(
    document: type[PoolDocument],
    predicate_type: str,
    envelope: bytes,
    pool: Pool,
    duty: Duty,
    *,
    most: int = MAX_ENVELOPE_BYTES,
) -> tuple[str, PoolDocument]:
    """Verify a document about a pool by a key that has or had a duty, and return its digest and what it says.

    What a key signed before another took its place stays good: releases lead back to it, and receipts are kept. What
    it signs afterwards counts only where the roles or the log name it, too. It may have `most` bytes.

    Raises:
        Refused: `WRONG_POOL`, `BAD_SIGNATURE`, or any code of an envelope.
    """
    signed, what = Signed.parse(envelope, most), f"The {predicate_type.split('/')[-2]}"
    by = next((key for key in pool.keys(duty) if key.keyid in signed.keyids), pool.key(duty))
    signed.verify(by)
    said = statement.read(document, statement.parse(signed.payload, predicate_type, most).predicate, what=what)
    if said.pool != pool.digest:
        raise Refused(Code.WRONG_POOL, f"{what} belongs to another pool.", "Tell the pool's operator.")
    return signed.digest, said
