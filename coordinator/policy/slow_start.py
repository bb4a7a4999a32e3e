"""How much a key may have under way before anything of it was let in."""

from collections.abc import Collection

from coordinator.policy.lifecycle import State
from protocol.errors import Code, Refused

LET_IN = frozenset({State.ACCEPTED, State.RELEASED, State.SUPERSEDED})


def check_slow_start(states: Collection[str], uploads: int, most: int) -> None:
    """Refuse one more bundle of a key of which nothing was let in yet (`QUOTA`).

    Args:
        states: Of all that the key submitted, without the bundle itself.
        uploads: Other bundles that it is uploading.
        most: How many such a key may have under way.
    """
    if LET_IN.intersection(states):
        return
    waiting = sum(state not in (State.REFUSED, State.YANKED) for state in states) + uploads
    if waiting >= most:
        what = f"Nothing of this key was let in yet, and {waiting} of its bundles are under way; {most} may be."
        raise Refused(Code.QUOTA, what, "Wait for the verdict on the first: greylag-client status")
