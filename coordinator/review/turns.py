"""Whose bundle is next: contributors take turns, and each one's bundles come in order of arrival."""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import and_, literal, or_, select

from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow, Contributor

_WORKED_ON = State.RECEIVED, State.QUARANTINED, State.ACCEPTED


class QueuedBundle(NamedTuple):
    """What is worked on next."""

    digest: str
    contributor: str
    """Key of whoever it is charged to."""


class Turns:
    """A fair queue: a contributor's first bundle waits for one review of each other contributor's at most.

    Args:
        registry: Knows what waits.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._served: dict[str, int] = {}
        """By contributor: the number of the last turn; a restart begins with whoever came first."""

    def next(
        self, passed_over: Collection[str], undecided: Collection[str] = (), *, frozen: bool = False
    ) -> QueuedBundle | None:
        """Say whose turn it is; None if none is left.

        Args:
            passed_over: Digests of those that had theirs, or rest.
            undecided: Digests of those that are passed over for as long as they are quarantined.
            frozen: Whether nothing is let in or released now; what arrived is checked all the same, and so is what is
                of a paused key, of which nothing is let in or released either.
        """
        # No envelopes: many may wait.
        columns = BundleRow.digest, BundleRow.contributor, BundleRow.sequence, BundleRow.state
        with self._registry.reading() as session:
            query = (
                select(*columns)
                .join(Contributor)
                .where(
                    BundleRow.state.in_(_WORKED_ON),
                    or_(BundleRow.state == State.RECEIVED, and_(Contributor.state == "active", literal(not frozen))),
                )
            )
            waiting = session.execute(query).all()
        left = [
            row
            for row in waiting
            if row.digest not in passed_over and not (row.state == State.QUARANTINED and row.digest in undecided)
        ]
        if not left:
            return None
        chosen = min(left, key=lambda row: (self._served.get(row.contributor, 0), row.sequence))
        return QueuedBundle(chosen.digest, chosen.contributor)

    def took(self, turn: QueuedBundle) -> None:
        """Count a turn in which something was done; one that found nothing to do cost nobody anything."""
        self._served[turn.contributor] = max(self._served.values(), default=0) + 1
