"""Releases, the steps that bundles take by them, and what keeps anybody to a share of one."""

import hashlib
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, defer, undefer

from coordinator.policy.lifecycle import WAITING, State
from coordinator.policy.switches import Switch, check_open
from coordinator.registry import journal
from coordinator.registry.switches import read_switches
from coordinator.registry.tables import BundleRow, CapRow, Contributor, Event, ReleaseRow
from coordinator.registry.transactions import Subject
from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.release import Release


class Releases(Subject):
    """Every release."""

    def publish(self, release: Release, *, now: datetime, decide: Callable[[Session], None] = lambda _: None) -> None:
        """Store a release together with the steps that its bundles take by it.

        Args:
            release: The release.
            now: The time.
            decide: Keeps, in the same transaction, the decision that led here.

        Raises:
            Refused: `STATE_CHANGE` if a bundle or the newest release changed meanwhile, so that the list is
                not exactly what is released; `KEY_REVOKED` if the key of one that is new in it was revoked.
            Unavailable: `CLOSED` for a frozen pool, if anything is new in it.
        """
        number = release.spec.number
        with self._registry.writing() as session:
            newest = session.scalar(select(func.max(ReleaseRow.number))) or 0
            if newest + 1 != number:
                raise Refused(Code.STATE_CHANGE, f"Release {number} cannot follow release {newest}.")
            decide(session)
            if _adds(session, release):
                check_open(read_switches(session), Switch.POOL)
            _store(session, release, BundleRow.state == State.ACCEPTED, actor="worker", now=now)
            released = set(session.scalars(select(BundleRow.digest).where(BundleRow.state == State.RELEASED)))
            if released != {expert.bundle for expert in release.spec.experts}:
                raise Refused(Code.STATE_CHANGE, f"Release {number} does not list what is released.")

    def adopt(self, release: Release, *, now: datetime) -> list[str]:
        """Take in a release that a newer registry published; the next one leaves out what this one does not hold.

        What it lists has passed there whatever it still waits for here; only what waits with a key that is revoked
        here is left for the worker to turn away. What is released here, and neither listed there nor followed by one
        of its name, was most likely yanked meanwhile, and must not be public again.

        Returns:
            Digests of the bundles that are yanked.

        Raises:
            Refused: `STATE_CHANGE` if it is not newer than the newest here.
        """
        number = release.spec.number
        with self._registry.writing() as session:
            newest = session.scalar(select(func.max(ReleaseRow.number))) or 0
            if newest >= number:
                raise Refused(Code.STATE_CHANGE, f"Another release {number} is here.", "Restore a newer registry.")
            held = {(expert.contributor, expert.name) for expert in release.spec.experts}
            out = [
                row
                for row, contributor in session.execute(
                    select(BundleRow, Contributor.name).join(Contributor).where(BundleRow.state == State.RELEASED)
                )
                if (contributor, row.name) not in held
            ]
            reason = Refused(Code.DECLINED, f"Release {number}, which a newer registry published, left it out.")
            for row in out:
                journal.take_step(session, row, State.YANKED, actor="operator", now=now, reason=reason)
            active = BundleRow.contributor.in_(select(Contributor.key).where(Contributor.state == "active"))
            _store(session, release, BundleRow.state.in_(WAITING) & active, actor="operator", now=now)
            return [row.digest for row in out]

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

    def contributors_before(self, moment: datetime) -> set[str]:
        """Name the contributors of whom something was released by a moment."""
        with self._registry.reading() as session:
            told = session.execute(select(Event.step, Event.at).where(Event.kind == "release"))
            early = [int(number) for number, at in told if at <= timestamp(moment)]
            query = (
                select(Contributor.name)
                .join(BundleRow)
                .where(BundleRow.release > 0, BundleRow.release <= max(early, default=0))
            )
            return set(session.scalars(query))

    def all(self) -> list[ReleaseRow]:
        """All releases, oldest first."""
        with self._registry.reading() as session:
            return list(session.scalars(select(ReleaseRow).order_by(ReleaseRow.number)))


class CapFiles(Subject):
    """Every cap that was fitted."""

    def find(self, fitted_for: str) -> CapRow | None:
        """Find what was fitted for a list, by the digest of all that the fit depends on."""
        with self._registry.reading() as session:
            return session.get(CapRow, fitted_for)

    def keep(self, fitted_for: str, content: bytes) -> CapRow:
        """Keep what was fitted; empty where nobody takes too much."""
        digest = hashlib.sha256(content).hexdigest() if content else ""
        with self._registry.writing() as session:
            return session.merge(CapRow(fitted_for=fitted_for, sha256=digest, size=len(content), content=content))

    def content(self, sha256: str) -> bytes | None:
        """Find a cap by its digest."""
        with self._registry.reading() as session:
            query = select(CapRow).where(CapRow.sha256 == sha256).options(undefer(CapRow.content)).limit(1)
            row = session.scalars(query).one_or_none()
            return row.content if row else None


def _adds(session: Session, release: Release) -> bool:
    """Tell whether a release lists what was never released."""
    listed = [expert.bundle for expert in release.spec.experts]
    waiting = BundleRow.state == State.ACCEPTED, BundleRow.digest.in_(listed)
    return session.scalar(select(BundleRow.digest).where(*waiting).limit(1)) is not None


def _store(session: Session, release: Release, passes: ColumnElement[bool], *, actor: str, now: datetime) -> None:
    """Keep a release, and let those of the listed bundles into it that pass."""
    number, listed = release.spec.number, {expert.bundle for expert in release.spec.experts}
    session.add(ReleaseRow(number=number, digest=release.digest, envelope=release.envelope))
    journal.overtake(session, now=now)
    journal.record(session, "release", release.digest, str(number), actor=actor, now=now)
    bears_on = BundleRow.state.in_((*WAITING, State.RELEASED)) | BundleRow.digest.in_(listed)
    small = defer(BundleRow.envelope), defer(BundleRow.receipt)
    rows = session.scalars(select(BundleRow).where(bears_on).options(*small).order_by(BundleRow.sequence)).all()
    passing = set(session.scalars(select(BundleRow.digest).where(passes, BundleRow.digest.in_(listed))))
    newest = {(row.contributor, row.name): row.sequence for row in rows if row.digest in listed}
    for row in rows:
        if row.digest in passing:
            for step in (*WAITING[WAITING.index(State(row.state)) + 1 :], State.RELEASED):
                journal.take_step(session, row, step, actor=actor, now=now)
            row.release, row.code, row.message, row.hint = number, "", "", ""
        elif row.digest not in listed:
            # Earlier bundles under the same name that still wait: letting one in later would turn back time.
            overtaken = row.sequence < newest.get((row.contributor, row.name), 0)
            if row.state == State.RELEASED or (row.state in WAITING and overtaken):
                journal.take_step(session, row, State.SUPERSEDED, actor=actor, now=now)
