"""Releases, and the steps that bundles take by them."""

from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import State
from coordinator.registry import journal
from coordinator.registry.bundles import bundle_row
from coordinator.registry.cascades import overtake
from coordinator.registry.tables import BundleRow, ReleaseRow
from coordinator.registry.transactions import Transactions
from protocol.errors import Code, Refused
from protocol.release import Release


class Releases:
    """Every release.

    Args:
        registry: Opens the transactions.
    """

    def __init__(self, registry: Transactions) -> None:
        self._registry = registry

    def publish(
        self,
        release: Release,
        steps: Mapping[str, State],
        *,
        now: datetime,
        decide: Callable[[Session], None] = lambda _: None,
    ) -> None:
        """Store a release together with the steps that its bundles take by it.

        Args:
            release: The release.
            steps: The step of each bundle, by digest.
            now: The time.
            decide: Keeps, in the same transaction, the decision that led here.

        Raises:
            Refused: `STATE_CHANGE` if a bundle or the newest release changed meanwhile, so that the list is
                not exactly what is released; `KEY_REVOKED` if the key of one that is new in it was revoked.
        """
        number = release.spec.number
        with self._registry.writing() as session:
            newest = session.scalar(select(func.max(ReleaseRow.number))) or 0
            if newest + 1 != number:
                raise Refused(Code.STATE_CHANGE, f"Release {number} cannot follow release {newest}.")
            session.add(ReleaseRow(number=number, digest=release.digest, envelope=release.envelope))
            decide(session)
            overtake(session, now=now)
            journal.record(session, "release", release.digest, str(number), actor="worker", now=now)
            for digest, step in steps.items():
                if row := bundle_row(session, digest):
                    journal.take_step(session, row, step, actor="worker", now=now)
                    if step is State.RELEASED:
                        row.release, row.code, row.message, row.hint = number, "", "", ""
            released = set(session.scalars(select(BundleRow.digest).where(BundleRow.state == State.RELEASED)))
            if released != {expert.bundle for expert in release.spec.experts}:
                raise Refused(Code.STATE_CHANGE, f"Release {number} does not list what is released.")

    def find(self, number: int = 0) -> ReleaseRow | None:
        """Find a release by number, or the newest (0)."""
        with self._registry.reading() as session:
            if number:
                return session.get(ReleaseRow, number)
            return session.scalars(select(ReleaseRow).order_by(ReleaseRow.number.desc()).limit(1)).first()

    def by_digest(self, digest: str) -> ReleaseRow | None:
        """Find a release by digest."""
        with self._registry.reading() as session:
            return session.scalars(select(ReleaseRow).where(ReleaseRow.digest == digest)).one_or_none()

    def all(self) -> list[ReleaseRow]:
        """All releases, oldest first."""
        with self._registry.reading() as session:
            return list(session.scalars(select(ReleaseRow).order_by(ReleaseRow.number)))
