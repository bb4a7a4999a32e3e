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
from coordinator.registry.transactions import Subject
from protocol.errors import Code, Refused
from protocol.release import Release


class Releases(Subject):
    """Every release."""

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
            decide(session)
            _store(session, release, steps, actor="worker", now=now)
            released = set(session.scalars(select(BundleRow.digest).where(BundleRow.state == State.RELEASED)))
            if released != {expert.bundle for expert in release.spec.experts}:
                raise Refused(Code.STATE_CHANGE, f"Release {number} does not list what is released.")

    def adopt(self, release: Release, steps: Mapping[str, State], *, now: datetime) -> None:
        """Take in a release that a newer registry published; the next one leaves out what this one does not hold.

        Args:
            release: The release.
            steps: The step of each bundle that is here, by digest.
            now: The time.

        Raises:
            Refused: `STATE_CHANGE` if it is not newer than the newest here.
        """
        with self._registry.writing() as session:
            newest = session.scalar(select(func.max(ReleaseRow.number))) or 0
            if newest >= release.spec.number:
                raise Refused(
                    Code.STATE_CHANGE, f"Another release {release.spec.number} is here.", "Restore a newer registry."
                )
            _store(session, release, steps, actor="operator", now=now)

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


def _store(session: Session, release: Release, steps: Mapping[str, State], *, actor: str, now: datetime) -> None:
    number = release.spec.number
    session.add(ReleaseRow(number=number, digest=release.digest, envelope=release.envelope))
    overtake(session, now=now)
    journal.record(session, "release", release.digest, str(number), actor=actor, now=now)
    for digest, step in steps.items():
        if row := bundle_row(session, digest):
            left_out = Refused(Code.DECLINED, f"Release {number}, which a newer registry published, left it out.")
            reason = left_out if step is State.YANKED else None
            journal.take_step(session, row, step, actor=actor, now=now, reason=reason)
            if step is State.RELEASED:
                row.release, row.code, row.message, row.hint = number, "", "", ""
