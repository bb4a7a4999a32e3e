"""What a router can answer with: the newest release, and a few before it that requests may still ask for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from protocol.errors import Code, Refused
from protocol.spec import Routing
from router.pool.expert import Expert
from router.pool.pool import ExpertPool

KEPT = 4
"""Releases that a running model holds at most, the newest among them.

As a rule they share pages, and an earlier one costs the experts that the newest lacks. Where a release comes in
an order that none of them has, or finds most experts gone, it stands in pages of its own and counts whole.
"""
_SUBSETS = 8
"""Subsets of a generation's experts that are kept: requests name any."""
Listed = tuple[str, str, str]
"""An expert as a release lists it: digest, name, contributor."""


def listing(expert: Expert) -> Listed:
    """Tell experts apart: under another name, as when it was put on by hand, one is another one."""
    return expert.digest, expert.name, expert.contributor


@dataclass(frozen=True, eq=False)
class Generation:
    """What a request is answered with, from its first token to its last."""

    pool: ExpertPool = field(default_factory=ExpertPool)
    settings: Routing = field(default_factory=Routing)
    """Method and k for requests that name none."""
    release: int = 0
    """Number of the release; 0 for a pool that was put together by hand."""
    expires: datetime | None = None
    """When the release is no longer to be taken for the newest, or asked for by its number."""
    _subsets: dict[object, ExpertPool] = field(init=False, repr=False, default_factory=dict)

    def allowing(self, allow: tuple[str, ...] | None, deny: tuple[str, ...]) -> ExpertPool:
        """See some of the experts, as `ExpertPool.allowing`; with the last few subsets what methods know of them stays.

        Raises:
            Refused: `EXPERT_UNKNOWN`, or `EXPERTS_EXHAUSTED`.
        """
        pool = self._subsets.pop((allow, deny), None) or self.pool.allowing(allow, deny)
        self._subsets[allow, deny] = pool
        for former in list(self._subsets)[:-_SUBSETS]:
            self._subsets.pop(former, None)
        return pool

    @property
    def expired(self) -> bool:
        """Whether its time is over, by this machine's clock."""
        return self.expires is not None and self.expires < datetime.now(UTC)


@dataclass(frozen=True)
class Held:
    """The generations that a model holds, oldest first; a value, exchanged as a whole."""

    generations: tuple[Generation, ...] = field(default_factory=lambda: (Generation(),))
    kept: int = KEPT
    """At most so many."""
    answers_expired: bool = True
    """Whether the newest one answers still once it has expired, as it does on a machine that is offline."""

    @property
    def newest(self) -> Generation:
        """What answers a request that asks for no release."""
        return self.generations[-1]

    @property
    def releases(self) -> tuple[int, ...]:
        """Numbers of the releases that may be asked for, oldest first."""
        return tuple(generation.release for generation in self.generations if generation.release)

    @property
    def answering(self) -> bool:
        """Whether the newest one may answer."""
        return self.answers_expired or not self.newest.expired

    def followed_by(self, generation: Generation) -> "Held":
        """Hold a new release as the newest, and let go of the oldest beyond those kept.

        Experts that were put on by hand are no release, so they go; so does the same release, loaded before.
        """
        earlier = [each for each in self.generations if each.release not in (0, generation.release)]
        return replace(self, generations=(*earlier, generation)[-self.kept :])

    def nearest(self, wanted: Sequence[Listed]) -> ExpertPool:
        """Find the pool that is the shortest way to a release's experts.

        To put experts into another order takes pages of their own. So of the pools that hold theirs in the release's
        order it is the one with most of these, the newest of equals; but the newest of all where that holds more.

        Args:
            wanted: The release's experts.
        """
        among = set(wanted)
        pools = [generation.pool for generation in reversed(self.generations)]
        kept = [[each for each in map(listing, pool.experts) if each in among] for pool in pools]
        ways = [at for at, mine in enumerate(kept) if mine == list(wanted[: len(mine)])]
        best = max(ways, key=lambda at: len(kept[at]), default=0)
        return pools[best if len(kept[best]) >= len(kept[0]) else 0]

    def find(self, release: int | None) -> Generation:
        """Look a release up by its number; None stands for the newest.

        Raises:
            Refused: `RELEASE_UNKNOWN`, or `RELEASE_EXPIRED` for an earlier release whose time is over, since an
                expert that was yanked must not answer for ever, and for the newest unless `answers_expired`.
        """
        newest = self.newest
        found = newest if release is None else next((e for e in self.generations if e.release == release), None)
        if found is None:
            held = ", ".join(map(str, self.releases)) or "none"
            raise Refused(
                Code.RELEASE_UNKNOWN,
                f"Release {release} is not held here; these are: {held}.",
                "Ask for one of them, or leave the release out to take the newest.",
            )
        if found.expires is not None and found.expired and not (found is newest and self.answers_expired):
            raise Refused(
                Code.RELEASE_EXPIRED,
                f"Release {found.release} expired at {found.expires:%Y-%m-%d %H:%M} UTC.",
                "Ask for a new one of the router's operator."
                if found is newest
                else "Leave the release out to take the newest.",
            )
        return found
