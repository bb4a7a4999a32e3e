"""Which release comes next: accepted experts and the release before, to a new signed list."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import NamedTuple

from protocol.release import Pool, Release, ReleasedExpert, ReleaseSpec, read_timestamp, timestamp


class Change(NamedTuple):
    """A release to publish, and the bundles that leave the list by it."""

    spec: ReleaseSpec
    superseded: tuple[str, ...]


def next_release(
    pool: Pool, previous: Release | None, *, accepted: Sequence[ReleasedExpert], gone: AbstractSet[str], now: datetime
) -> Change | None:
    """Build the release that follows, or None if it would say the same and the last one is fresh.

    Experts keep their places. An accepted expert takes the end of the list, and what its
    contributor had released under its name leaves.

    Args:
        pool: The pool.
        previous: The newest release, if there is one.
        accepted: Experts to add, oldest first.
        gone: Digests of bundles that must not be in any new release (yanked, superseded).
        now: The time.
    """
    before = previous.spec.experts if previous else ()
    listed = {expert.bundle: expert for expert in before if expert.bundle not in gone}
    superseded = []
    for new in accepted:
        if new.bundle in gone or new.bundle in listed:
            continue
        for old in list(listed.values()):
            if (old.contributor, old.name) == (new.contributor, new.name):
                del listed[old.bundle]
                superseded.append(old.bundle)
        listed[new.bundle] = new
    experts = tuple(listed.values())
    if experts == before and (previous is None or not _near_expiry(previous, now)):
        return None
    spec = ReleaseSpec(
        pool=pool.digest,
        number=previous.spec.number + 1 if previous else 1,
        previous=previous.digest if previous else None,
        experts=experts,
        routing=pool.spec.routing,
        created=timestamp(now),
        expires=timestamp(now + timedelta(days=pool.spec.policy.release_days)),
    )
    return Change(spec, tuple(digest for digest in superseded if digest not in listed))


def _near_expiry(release: Release, now: datetime) -> bool:
    """The last third of a release's time: nodes that were away for a while still find a valid one."""
    created, expires = read_timestamp(release.spec.created), read_timestamp(release.spec.expires)
    return now > expires - (expires - created) / 3
