"""Releases: what "newest" means at a number, signed by the pool's coordinator.

A release is a short list, not a tensor file: it names bundles by digest, in order. A pool that
grows by one expert grows by one line, and a node fetches only what it lacks.

A node takes what a coordinator sends for its pool's newest release by these rules, in this order.

0. The pool's roles name it, by digest, and say so today (`protocol.roles.metadata`).
1. A key that has or had that duty by the pool's roots, or else the pool's key, pinned at the first contact or given by
   a person, signed it, and as a release: a candidate is a statement of another type (`read_release`).
2. It is of the pool whose digest was pinned (`read_release`).
3. Its number is not below that of the newest release that the node has used: no rollback (`check_fresh`). Nor is it
   one that a pool of that age cannot have come to, after which no other could follow: no fast-forward.
4. Under the same number it is the same release, byte by byte: no fork.
5. From a higher number, `previous` leads back to the release that was used last, through every release between, each
   fetched and held against rules 1 and 2. These may have expired. More than `MOST_BETWEEN` are not followed: no fork,
   but too far.
6. It has not expired, by the node's own clock, nor will it stay valid for longer than the pool's policy lets releases
   last. Asked last, so that a rollback is told as one.
7. The log that the coordinator shows holds the release, continues the checkpoint in it and the last that was seen here,
   and as many witnesses have signed for it as the node wants (`protocol.log.reader`).
8. Every file that it lists is fetched by digest, and only once all are whole, and a model that runs has taken it up, is
   it the newest that was used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field, model_validator

from protocol.documents import Duty, OfPool, Pool, read_of_pool, read_timestamp, sign, timestamp
from protocol.errors import Code, Refused
from protocol.signing import Identity, Signed
from protocol.spec import Name, Routing, Sha256, Timestamp, Version
from protocol.statement import Strict

RELEASE_TYPE = "https://greylag.org/release/v1"
CANDIDATE_TYPE = "https://greylag.org/candidate/v1"
MAX_CALIBRATION_BYTES = 3 << 20
"""Largest calibration as a file, and as a node's answer: 1000 experts at 700 modules."""
MAX_RELEASE_BYTES = (1 << 25) - (1 << 10)
"""Longest list, as an envelope: some 180,000 experts. It fits into one reply (`protocol.wire.chunks`)."""
MOST_BETWEEN = 10_000
"""Releases between the last one that a node has used and the newest: decades of them."""
MOST_A_SECOND = 1
"""Releases that a pool makes, on an average of its life."""
CLOCKS_APART = timedelta(days=1)
"""How far a node's clock may be behind the coordinator's."""


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


class CapFile(Strict):
    """Biases that keep anybody from taking more than a share, by content, in the format of a calibration.

    `router.model.capture` says how they are found; they add to a calibration's.
    """

    sha256: Sha256
    size: Annotated[int, Field(ge=1, le=MAX_CALIBRATION_BYTES)]
    """In bytes."""


class ReleaseSpec(OfPool):
    """What "newest" means at a number."""

    version: Version = 1
    number: Annotated[int, Field(ge=1)]
    previous: Sha256 | None
    """Digest of the release before; null for the first."""
    experts: tuple[ReleasedExpert, ...]
    routing: Routing
    calibration: CalibrationFile | None = None
    """None where gates alone decide."""
    cap: Annotated[CapFile | None, Field(exclude_if=lambda cap: cap is None)] = None
    """None where nobody takes too much."""
    checkpoint: Annotated[str, Field(max_length=2048)] | None = None
    """The log as it was before, signed: whoever takes the release has seen that much of it. None in a candidate."""
    created: Timestamp
    expires: Timestamp

    @model_validator(mode="after")
    def _is_a_list_for_a_time(self) -> "ReleaseSpec":
        if len({expert.bundle for expert in self.experts}) != len(self.experts):
            raise ValueError("a bundle stands in it twice")
        if len({(expert.contributor, expert.name) for expert in self.experts}) != len(self.experts):
            raise ValueError("two bundles stand in it under one name")
        if self.expires <= self.created:
            raise ValueError("it expires before it begins")
        return self


@dataclass(frozen=True)
class Release:
    """A release whose signature was verified."""

    digest: str
    envelope: bytes
    spec: ReleaseSpec


def sign_release(spec: ReleaseSpec, identity: Identity) -> Release:
    """Sign a release; its subject is the pool."""
    return _sign_list(RELEASE_TYPE, spec, identity)


def read_release(envelope: bytes, pool: Pool) -> Release:
    """Verify a release of a pool; refuses as `read_of_pool`."""
    return _read_list(envelope, pool, RELEASE_TYPE)


def sign_candidate(spec: ReleaseSpec, identity: Identity) -> Release:
    """Sign what may become a release; as a statement of another type it can never be taken for one."""
    return _sign_list(CANDIDATE_TYPE, spec, identity)


def read_candidate(envelope: bytes, pool: Pool) -> Release:
    """Verify a candidate of a pool; refuses as `read_of_pool`."""
    return _read_list(envelope, pool, CANDIDATE_TYPE)


def check_fresh(
    release: Release, pool: Pool, *, seen: Release | None, now: datetime, earlier: Callable[[int], Release]
) -> None:
    """Refuse to move backwards, sideways or out of reach, or to take an expired release for the newest: rules 3 to 6.

    Args:
        release: What is to be the newest.
        pool: The pool that it is of.
        seen: The newest release that this node has used; None for none.
        now: The time, aware.
        earlier: Fetches and verifies a release by its number.

    Raises:
        Refused: `RELEASE_ROLLBACK`, `RELEASE_TOO_FAR`, `RELEASE_FORK`, `RELEASE_EXPIRED` or `RELEASE_DATES`.
    """
    age_s = max(0.0, (now - read_timestamp(pool.spec.created)).total_seconds())
    if release.spec.number > MOST_BETWEEN + age_s * MOST_A_SECOND:
        what = f"There cannot be a release {release.spec.number} of a pool that was made at {pool.spec.created}."
        raise Refused(Code.RELEASE_TOO_FAR, what, "Tell the operator that somebody may have the pool's key.")
    if seen is not None:
        _check_continues(release, seen, earlier)
    days = pool.spec.policy.release_days
    if read_timestamp(release.spec.expires) > now + timedelta(days=days) + CLOCKS_APART:
        raise Refused(
            Code.RELEASE_DATES,
            f"Release {release.spec.number} is to be valid until {release.spec.expires}, but no release of this pool "
            f"for more than {days} days; this machine's clock says {timestamp(now)}.",
            "Check the clock, then tell the operator that somebody may have the pool's key.",
        )
    if read_timestamp(release.spec.expires) < now:
        raise Refused(
            Code.RELEASE_EXPIRED,
            f"Release {release.spec.number} expired at {release.spec.expires}; this machine's clock says "
            f"{timestamp(now)}.",
            "Check the clock, then ask the operator for a new release.",
        )


def _check_continues(release: Release, seen: Release, earlier: Callable[[int], Release]) -> None:
    number, known = release.spec.number, seen.spec.number
    if number < known:
        what = f"The coordinator offers release {number}, but release {known} was seen here."
        raise Refused(Code.RELEASE_ROLLBACK, what, "Ask the operator whether an old backup was restored.")
    if number - known - 1 > MOST_BETWEEN:
        raise Refused(
            Code.RELEASE_TOO_FAR,
            f"Release {number} is too far from release {known} as it was seen here: more than {MOST_BETWEEN} releases "
            "lie between.",
            "Follow the pool in a new folder, once its operator has confirmed the pool's key.",
        )
    digest: str | None = release.digest
    if number > known:
        digest = release.spec.previous
        for between in range(number - 1, known, -1):
            before = earlier(between)
            if (before.digest, before.spec.number) != (digest, between):
                digest = None
                break
            digest = before.spec.previous
    if digest != seen.digest:
        raise Refused(
            Code.RELEASE_FORK,
            f"Release {number} does not continue release {known} as it was seen here.",
            "The coordinator shows different releases to different people; ask the operator.",
        )


def _sign_list(predicate_type: str, spec: ReleaseSpec, identity: Identity) -> Release:
    envelope = sign(predicate_type, {"pool": spec.pool}, spec, identity)
    return Release(Signed.parse(envelope, MAX_RELEASE_BYTES).digest, envelope, spec)


def _read_list(envelope: bytes, pool: Pool, predicate_type: str) -> Release:
    digest, spec = read_of_pool(ReleaseSpec, predicate_type, envelope, pool, Duty.RELEASES, most=MAX_RELEASE_BYTES)
    return Release(digest, envelope, spec)
