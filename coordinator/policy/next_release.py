"""Which release comes next, and what it makes of the bundles."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Protocol

from coordinator.policy.lifecycle import WAITING, State
from protocol.documents import Pool, read_timestamp, timestamp
from protocol.release import CalibrationFile, Release, ReleasedExpert, ReleaseSpec


class BundleFacts(Protocol):
    """What the registry says of a bundle, as far as it matters here."""

    sequence: int
    digest: str
    contributor: str
    name: str
    state: str


def next_release(
    pool: Pool,
    previous: Release | None,
    *,
    accepted: Sequence[ReleasedExpert],
    held: AbstractSet[str],
    now: datetime,
    calibration: CalibrationFile | None = None,
) -> ReleaseSpec | None:
    """Build the release that follows, or None if it would say the same and the last one is fresh.

    Experts keep their places. An accepted expert takes the end of the list, and what its
    contributor had released under its name leaves.

    Args:
        pool: The pool.
        previous: The newest release, if there is one.
        accepted: Experts to add, oldest first.
        held: Digests of the bundles that may be in a release: accepted and released ones.
        now: The time.
        calibration: Biases and temperatures; None for those of the newest release, if it has any.
    """
    before = previous.spec.experts if previous else ()
    calibrated_before = previous.spec.calibration if previous else None
    calibration = calibration or calibrated_before
    listed = {expert.bundle: expert for expert in before if expert.bundle in held}
    for new in accepted:
        if new.bundle not in held or new.bundle in listed:
            continue
        for old in list(listed.values()):
            if (old.contributor, old.name) == (new.contributor, new.name):
                del listed[old.bundle]
        listed[new.bundle] = new
    experts = tuple(listed.values())
    same = experts == before and calibration == calibrated_before
    if same and (previous is None or not _near_expiry(previous, now)):
        return None
    return ReleaseSpec(
        pool=pool.digest,
        number=previous.spec.number + 1 if previous else 1,
        previous=previous.digest if previous else None,
        experts=experts,
        routing=pool.spec.routing,
        calibration=calibration,
        created=timestamp(now),
        expires=timestamp(now + timedelta(days=pool.spec.policy.release_days)),
    )


def steps_to(spec: ReleaseSpec, rows: Sequence[BundleFacts]) -> dict[str, State]:
    """List the steps that bundles take when a release is published.

    Args:
        spec: The release.
        rows: Every bundle.
    """
    listed = {expert.bundle for expert in spec.experts}
    steps: dict[str, State] = {}
    newest: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.digest in listed:
            newest[row.contributor, row.name] = row.sequence
            if row.state == State.ACCEPTED:
                steps[row.digest] = State.RELEASED
    for row in rows:
        if row.digest in listed:
            continue
        # Earlier bundles under the same name that still wait: letting one in later would turn back time.
        overtaken = row.sequence < newest.get((row.contributor, row.name), 0)
        if row.state == State.RELEASED or (row.state in WAITING and overtaken):
            steps[row.digest] = State.SUPERSEDED
    return steps


def steps_to_adopted(spec: ReleaseSpec, rows: Sequence[BundleFacts], names: Mapping[str, str]) -> dict[str, State]:
    """List the steps that bundles take when a registry takes in a release that a newer one published.

    What is released here, and neither listed there nor followed by one of its name, was most likely yanked meanwhile;
    what was yanked must not be public again.

    Args:
        spec: The release.
        rows: Every bundle.
        names: Contributors' names by key.
    """
    held = {(expert.contributor, expert.name) for expert in spec.experts}
    steps = steps_to(spec, rows)
    for row in rows:
        if row.state == State.RELEASED and (names[row.contributor], row.name) not in held:
            steps[row.digest] = State.YANKED
    return steps


def _near_expiry(release: Release, now: datetime) -> bool:
    """The last third of a release's time: nodes that were away for a while still find a valid one."""
    created, expires = read_timestamp(release.spec.created), read_timestamp(release.spec.expires)
    return now > expires - (expires - created) / 3
