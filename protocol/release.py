"""Signed documents of a coordinator: the pool, its releases, enrolments and receipts.

A release is a short list, not a tensor file: it names bundles by digest, in order. A pool that
grows by one expert grows by one line, and a node fetches only what it lacks.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, model_validator

from protocol import statement
from protocol.errors import Code, Refused
from protocol.signing import Identity, PublicKey, Signed
from protocol.spec import (
    POOL_TYPE,
    TIMESTAMP_FORMAT,
    KeyHex,
    Name,
    PoolSpec,
    Routing,
    Sha256,
    Timestamp,
    Version,
)
from protocol.statement import Document, Strict

RELEASE_TYPE = "https://greylag.org/release/v1"
CANDIDATE_TYPE = "https://greylag.org/candidate/v1"
ENROLMENT_TYPE = "https://greylag.org/enrolment/v1"
RECEIPT_TYPE = "https://greylag.org/receipt/v1"
MAX_CALIBRATION_BYTES = 3 << 20
"""Largest calibration as a file, and as a node's answer: 1000 experts at 700 modules."""


class ReleasedExpert(Strict):
    """One expert of a release."""

    name: Name
    contributor: Name
    bundle: Sha256


class Spent(Strict):
    """What an accountant says that calibration has told of any one contributor, at most."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    rounds: Annotated[int, Field(ge=1)]
    """Rounds of all campaigns so far that noise was added to."""


class CalibrationFile(Strict):
    """Biases and temperatures for the routers of a release, by content; `router.pool.calibration` says what is in it.

    It names experts by bundle, so a release with other experts may carry it on: who is new has no bias.
    """

    sha256: Sha256
    size: Annotated[int, Field(ge=1, le=MAX_CALIBRATION_BYTES)]
    """In bytes."""
    campaign: Annotated[int, Field(ge=1)]
    """The campaign that it comes from."""
    privacy: Spent | None = None
    """None where no noise was added."""


class ReleaseSpec(Strict):
    """What "newest" means at a number."""

    version: Version = 1
    pool: Sha256
    number: Annotated[int, Field(ge=1)]
    previous: Sha256 | None
    """Digest of the release before; null for the first."""
    experts: tuple[ReleasedExpert, ...]
    routing: Routing
    calibration: CalibrationFile | None = None
    """None where gates alone decide."""
    created: Timestamp
    expires: Timestamp

    @model_validator(mode="after")
    def _is_a_list_for_a_time(self) -> "ReleaseSpec":
        if len({expert.bundle for expert in self.experts}) != len(self.experts):
            raise ValueError("a bundle stands in it twice")
        if self.expires <= self.created:
            raise ValueError("it expires before it begins")
        return self


class Enrolment(Strict):
    """A key presents itself under a name; signed by that key."""

    pool: Sha256
    name: Name
    key: KeyHex
    created: Timestamp


class Receipt(Strict):
    """The coordinator's word that it keeps a bundle."""

    pool: Sha256
    bundle: Sha256
    contributor: KeyHex
    sequence: Annotated[int, Field(ge=1)]
    received: Timestamp


@dataclass(frozen=True)
class Pool:
    """A pool whose signature was verified."""

    digest: str
    envelope: bytes
    spec: PoolSpec


@dataclass(frozen=True)
class Release:
    """A release whose signature was verified."""

    digest: str
    envelope: bytes
    spec: ReleaseSpec


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
        trusted: The key it must be signed by; without one, the key that it names itself
            (trust on first use: the caller shows the key to a person).

    Raises:
        Refused: `UNTRUSTED` for another key than the trusted one, or any code of an envelope.
    """
    signed = Signed.parse(envelope)
    spec = statement.read(PoolSpec, statement.parse(signed.payload, POOL_TYPE).predicate, what="The pool")
    key = PublicKey.from_hex(spec.coordinator)
    if trusted is not None and key != trusted:
        raise Refused(
            Code.UNTRUSTED,
            f"The pool is signed by key {key.hex[:16]}; this machine trusts {trusted.hex[:16]}.",
            "Ask the operator; if the key really changed, start a new workspace.",
        )
    signed.verify(key)
    return Pool(signed.digest, envelope, spec)


def sign_release(spec: ReleaseSpec, identity: Identity) -> Release:
    """Sign a release; its subject is the pool."""
    envelope = sign(RELEASE_TYPE, {"pool": spec.pool}, spec, identity)
    return Release(Signed.parse(envelope).digest, envelope, spec)


def read_release(envelope: bytes, pool: Pool) -> Release:
    """Verify a release of a pool.

    Raises:
        Refused: `WRONG_POOL`, `BAD_SIGNATURE`, or any code of an envelope.
    """
    return _read_list(envelope, pool, RELEASE_TYPE, "The release")


def sign_candidate(spec: ReleaseSpec, identity: Identity) -> Release:
    """Sign what may become a release; as a statement of another type it can never be taken for one."""
    envelope = sign(CANDIDATE_TYPE, {"pool": spec.pool}, spec, identity)
    return Release(Signed.parse(envelope).digest, envelope, spec)


def read_candidate(envelope: bytes, pool: Pool) -> Release:
    """Verify a candidate of a pool.

    Raises:
        Refused: `WRONG_POOL`, `BAD_SIGNATURE`, or any code of an envelope.
    """
    return _read_list(envelope, pool, CANDIDATE_TYPE, "The candidate")


def check_fresh(release: Release, *, seen: Release | None, now: datetime) -> None:
    """Refuse to move backwards or sideways, or to take an expired release for the newest.

    Args:
        release: The candidate.
        seen: The newest release that this node has used; None for none.
        now: The time, aware.

    Raises:
        Refused: `RELEASE_ROLLBACK`, `RELEASE_FORK` or `RELEASE_EXPIRED`.
    """
    if seen is not None:
        _check_successor(release, seen)
    if read_timestamp(release.spec.expires) < now:
        raise Refused(
            Code.RELEASE_EXPIRED,
            f"Release {release.spec.number} expired at {release.spec.expires}; this machine's clock says "
            f"{timestamp(now)}.",
            "Check the clock, then ask the operator for a new release.",
        )


def _check_successor(release: Release, seen: Release) -> None:
    number, known = release.spec.number, seen.spec.number
    if number < known:
        raise Refused(
            Code.RELEASE_ROLLBACK,
            f"The coordinator offers release {number}, but release {known} was seen here.",
            "Ask the operator whether an old backup was restored.",
        )
    same = release.digest if number == known else release.spec.previous if number == known + 1 else seen.digest
    if same != seen.digest:
        raise Refused(
            Code.RELEASE_FORK,
            f"Release {number} does not continue release {known} as it was seen here.",
            "The coordinator shows different releases to different people; ask the operator.",
        )


def read_enrolment(envelope: bytes) -> Enrolment:
    """Verify that a key presents itself.

    Raises:
        Refused: `BAD_SIGNATURE`, `WEAK_KEY`, or any code of an envelope.
    """
    signed = Signed.parse(envelope)
    spec = statement.read(Enrolment, statement.parse(signed.payload, ENROLMENT_TYPE).predicate, what="The enrolment")
    signed.verify(PublicKey.from_hex(spec.key))
    return spec


def read_receipt(envelope: bytes, pool: Pool) -> Receipt:
    """Verify a receipt of a pool's coordinator.

    Raises:
        Refused: `WRONG_POOL`, `BAD_SIGNATURE`, or any code of an envelope.
    """
    receipt = _read(Receipt, RECEIPT_TYPE, envelope, PublicKey.from_hex(pool.spec.coordinator), "The receipt")[1]
    if receipt.pool != pool.digest:
        raise Refused(Code.WRONG_POOL, "The receipt belongs to another pool.", "Tell the pool's operator.")
    return receipt


def timestamp(moment: datetime) -> str:
    """Write an aware time as the documents do: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime(TIMESTAMP_FORMAT)


def read_timestamp(text: str) -> datetime:
    """Inverse of `timestamp`."""
    return datetime.strptime(text, TIMESTAMP_FORMAT).replace(tzinfo=UTC)


def _read_list(envelope: bytes, pool: Pool, predicate_type: str, what: str) -> Release:
    signed, spec = _read(ReleaseSpec, predicate_type, envelope, PublicKey.from_hex(pool.spec.coordinator), what)
    if spec.pool != pool.digest:
        raise Refused(Code.WRONG_POOL, f"{what} belongs to another pool.", "Tell the pool's operator.")
    return Release(signed.digest, envelope, spec)


def _read(
    document: type[Document], predicate_type: str, envelope: bytes, key: PublicKey, what: str
) -> tuple[Signed, Document]:
    signed = Signed.parse(envelope)
    signed.verify(key)
    parsed = statement.parse(signed.payload, predicate_type)
    return signed, statement.read(document, parsed.predicate, what=what)
