"""A bundle's life: its states, the steps between them, and what earlier lives mean for a new one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.compatibility import Submitted
from protocol.errors import Code, Refused


class State(StrEnum):
    """Where a bundle stands."""

    RECEIVED = "received"
    """Every byte is kept; nothing has been looked at."""
    VERIFIED = "verified"
    """Structure and numbers are what the envelope says."""
    QUARANTINED = "quarantined"
    """Waits for the pool's policy."""
    ACCEPTED = "accepted"
    """Allowed in; not in a release yet."""
    REFUSED = "refused"
    RELEASED = "released"
    SUPERSEDED = "superseded"
    YANKED = "yanked"


_STEPS = {
    State.RECEIVED: {State.VERIFIED, State.REFUSED, State.SUPERSEDED},
    State.VERIFIED: {State.QUARANTINED, State.REFUSED, State.SUPERSEDED},
    State.QUARANTINED: {State.ACCEPTED, State.REFUSED, State.SUPERSEDED},
    State.ACCEPTED: {State.RELEASED, State.REFUSED, State.SUPERSEDED},
    State.RELEASED: {State.SUPERSEDED, State.YANKED},
    State.SUPERSEDED: {State.YANKED},
    State.REFUSED: set(),
    State.YANKED: set(),
}

WAITING = State.RECEIVED, State.VERIFIED, State.QUARANTINED, State.ACCEPTED
"""States from which a bundle may still come into a release, one after the other."""


def is_public(state: str, release: int) -> bool:
    """Tell whether anyone may fetch a bundle's bytes.

    What was released and then superseded stays public, so that a node that follows an earlier release can still
    complete it; what was overtaken before that never becomes it.

    Args:
        state: The bundle's state.
        release: The first release that holds it; 0 for none.
    """
    return state in (State.ACCEPTED, State.RELEASED) or (state == State.SUPERSEDED and release > 0)


def check_step(digest: str, before: State, after: State) -> None:
    """Refuse a step that a bundle's life does not have (`STATE_CHANGE`)."""
    if after not in _STEPS[before]:
        raise Refused(
            Code.STATE_CHANGE,
            f"Bundle {digest[:16]} is {before}; it cannot become {after}.",
            "List the bundles with: greylag-coordinator experts ls",
        )


@dataclass(frozen=True)
class Standing:
    """What the registry knows that bears on one new bundle; read in one transaction."""

    contributor: str | None
    """State of the contributor's key: active, pending, revoked, rotated; None for an unknown key."""
    earlier: Mapping[str, Sequence[Submitted]] = field(default_factory=dict)
    """What else this contributor submitted, by name, oldest first."""
    uploads: Collection[str] = ()
    """Names of the other bundles that this contributor has begun to upload."""
    twin: int | None = None
    """Sequence number of a bundle with the same weights that keeps them out: another's, or refused, or yanked."""
    kept_bytes: int = 0
    """Of all bundles of this contributor that are neither refused nor yanked."""
    refused: Sequence[tuple[str, int]] = ()
    """When each of this contributor's refused or yanked bundles came, and its bytes."""
