"""Which release comes next."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta

from protocol.documents import Pool, read_timestamp, timestamp
from protocol.release import CalibrationFile, Release, ReleasedExpert, ReleaseSpec


def next_release(
    pool: Pool,
    previous: Release | None,
    *,
    accepted: Sequence[ReleasedExpert],
    held: AbstractSet[str],
    now: datetime,
    calibration: CalibrationFile | None = None,
    again: bool = False,
) -> ReleaseSpec | None:
    """Build the release that follows, or None if it would say the same and the last one is fresh.

    Experts keep their places. An accepted expert takes the end of the list, and what its
    contributor had released under its name leaves. The cap is that of before.

    Args:
        pool: The pool.
        previous: The newest release, if there is one.
        accepted: Experts to add, oldest first.
        held: Digests of the bundles that may be in a release: accepted and released ones.
        now: The time.
        calibration: Biases and temperatures; None for those of the newest release, if it has any.
        again: Whether there is something else to say, so that the same is said again.
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
    if same and (previous is None or not (again or _near_expiry(previous, now))):
        return None
    return ReleaseSpec(
        pool=pool.digest,
        number=previous.spec.number + 1 if previous else 1,
        previous=previous.digest if previous else None,
        experts=experts,
        routing=pool.spec.routing,
        calibration=calibration,
        cap=previous.spec.cap if previous else None,
        created=timestamp(now),
        expires=timestamp(now + timedelta(days=pool.spec.policy.release_days)),
    )


def _near_expiry(release: Release, now: datetime) -> bool:
    """The last third of a release's time: nodes that were away for a while still find a valid one."""
    created, expires = read_timestamp(release.spec.created), read_timestamp(release.spec.expires)
    return now > expires - (expires - created) / 3
