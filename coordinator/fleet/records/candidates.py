"""Releases that wait to be judged."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import State
from coordinator.registry import journal
from coordinator.registry.cascades import bundles_of, overtake
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow, Campaign, Candidate
from protocol.errors import Code, GreylagError, Refused
from protocol.fleet.campaign import Decision
from protocol.release import Release


class Candidates:
    """Every candidate.

    Args:
        registry: Opens the transactions.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def propose(self, candidate: Release, *, now: datetime) -> None:
        """Keep a candidate; whichever was open before is overtaken by it."""
        with self._registry.writing() as session:
            overtake(session, now=now)
            if known := session.scalars(select(Candidate).where(Candidate.digest == candidate.digest)).one_or_none():
                known.state = "open"  # the very same list was overtaken by a longer one, which is over now
            else:
                sequence = (session.scalar(select(func.max(Candidate.sequence))) or 0) + 1
                session.add(
                    Candidate(sequence=sequence, digest=candidate.digest, envelope=candidate.envelope, state="open")
                )
            journal.record(session, "candidate", candidate.digest, "open", actor="worker", now=now)

    def all(self) -> list[Candidate]:
        """Every candidate, oldest first."""
        with self._registry.reading() as session:
            return list(session.scalars(select(Candidate).order_by(Candidate.sequence)))

    def find(self, digest: str = "") -> Candidate | None:
        """Find a candidate by digest, or the open one."""
        with self._registry.reading() as session:
            wanted = Candidate.digest == digest if digest else Candidate.state == "open"
            return session.scalars(select(Candidate).where(wanted)).one_or_none()

    def promote(
        self, decision: Decision, envelope: bytes, release: Release, steps: Mapping[str, State], *, now: datetime
    ) -> None:
        """Publish what a decision promotes, together with the decision.

        Raises:
            Refused: `CANDIDATE_UNKNOWN`, or `STATE_CHANGE` for a candidate whose time is over.
        """
        self._registry.releases.publish(
            release, steps, now=now, decide=lambda session: _decide(session, decision, envelope, now=now)
        )

    def hold_back(self, decision: Decision, envelope: bytes, *, condemned: Iterable[str], now: datetime) -> None:
        """Keep the decision against a candidate; condemned bundles are told why, and not proposed again.

        Raises:
            Refused: As `promote`.
        """
        with self._registry.writing() as session:
            _decide(session, decision, envelope, now=now)
            for row in session.scalars(select(BundleRow).where(BundleRow.digest.in_(list(condemned)))):
                row.code, row.message = Code.HELD_BACK.name, decision.reason
                row.hint = "Train it longer or on other data, and let the new bundle supersede it."

    def place(self, row: BundleRow) -> list[BundleRow] | None:
        """Say beside which other new bundles an accepted one is proposed; None for not now.

        Bundles that come one after the other share a candidate until it is being evaluated. Those of a candidate
        that was held back are proposed once more, each alone.
        """
        waiting = {other.digest: other for other in self._registry.bundles.all(State.ACCEPTED)}
        with self._registry.reading() as session:
            rows = list(session.scalars(select(Candidate).where(Candidate.state.in_(("open", "held_back")))))
            asked = set(session.scalars(select(Campaign.candidate).where(Campaign.state == "running")))
        listed = {each.digest: bundles_of(each) & waiting.keys() for each in rows}
        suspects = {bundle for each in rows if each.state == "held_back" for bundle in listed[each.digest]}
        open_one = next((each for each in rows if each.state == "open"), None)
        if row.code == Code.HELD_BACK.name:
            return None
        if open_one is None:
            return []
        beside = listed[open_one.digest]
        if open_one.digest in asked or row.digest in suspects or beside & suspects or row.digest in beside:
            return None
        return [waiting[bundle] for bundle in sorted(beside, key=lambda bundle: waiting[bundle].sequence)]


def _decide(session: Session, decision: Decision, envelope: bytes, *, now: datetime) -> None:
    row = session.scalars(select(Candidate).where(Candidate.digest == decision.candidate)).one_or_none()
    if row is None:
        raise no_candidate(decision.candidate)
    if row.state not in ("open", "held_back"):
        raise Refused(Code.STATE_CHANGE, f"Candidate {row.digest[:16]} is {row.state}; nothing is left to decide.")
    row.decision, row.state = envelope, "promoted" if decision.promoted else "held_back"
    why = None if decision.promoted else Refused(Code.HELD_BACK, decision.reason)
    journal.record(session, "candidate", row.digest, row.state, actor=decision.by, now=now, reason=why)


def no_candidate(digest: str) -> GreylagError:
    """Say that there is no such candidate."""
    return Refused(
        Code.CANDIDATE_UNKNOWN,
        f"There is no candidate {digest[:16]}." if digest else "There is no open candidate.",
        "See: greylag-coordinator candidates ls",
    )
