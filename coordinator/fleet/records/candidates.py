"""Releases that wait to be judged, and what becomes of them; always by a signed decision."""

from collections.abc import Collection
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import State
from coordinator.registry import journal
from coordinator.registry.tables import BundleRow, Campaign, Candidate
from coordinator.registry.transactions import Subject
from coordinator.workspace.context import Opened
from protocol.documents import Duty, timestamp
from protocol.errors import Code, GreylagError, Refused
from protocol.fleet.campaign import Decision, sign_decision
from protocol.release import Release, read_candidate, read_release, sign_release


class Candidates(Subject):
    """Every candidate."""

    def propose(self, candidate: Release, *, now: datetime) -> None:
        """Keep a candidate; whichever was open before is overtaken by it."""
        with self._registry.writing() as session:
            journal.overtake(session, now=now)
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

    def newcomers(self, digest: str) -> set[str]:
        """Name, as rows do, the contributors of what a candidate would let in."""
        with self._registry.reading() as session:
            row = session.scalars(select(Candidate).where(Candidate.digest == digest)).one()
            new = BundleRow.digest.in_(journal.bundles_of(row)), BundleRow.state == State.ACCEPTED
            return set(session.scalars(select(BundleRow.contributor).where(*new)))

    def place(self, row: BundleRow, put_off: Collection[str] = ()) -> list[BundleRow] | None:
        """Say beside which other new bundles an accepted one is proposed; None for not now.

        Bundles that come one after the other share a candidate until it is being evaluated. Those of a candidate
        that was held back are proposed once more, each alone. Of a contributor's bundles under one name the newest
        is proposed, whichever was accepted first; an older one only if that was held back or is put off, which
        `put_off` tells by digest.
        """
        with self._registry.reading() as session:
            accepted = select(BundleRow).where(BundleRow.state == State.ACCEPTED).order_by(BundleRow.sequence)
            waiting = {other.digest: other for other in session.scalars(accepted)}
            rows = list(session.scalars(select(Candidate).where(Candidate.state.in_(("open", "held_back")))))
            asked = set(session.scalars(select(Campaign.candidate).where(Campaign.state == "running")))
        successors = (
            other for other in waiting.values()
            if (other.contributor, other.name) == (row.contributor, row.name) and other.sequence > row.sequence
            and other.digest not in put_off
        )  # fmt: skip
        if row.code == Code.HELD_BACK.name or any(other.code != Code.HELD_BACK.name for other in successors):
            return None
        listed = {each.digest: journal.bundles_of(each) & waiting.keys() for each in rows}
        suspects = {bundle for each in rows if each.state == "held_back" for bundle in listed[each.digest]}
        open_one = next((each for each in rows if each.state == "open"), None)
        if open_one is None:
            return []
        beside = listed[open_one.digest]
        if open_one.digest in asked or row.digest in suspects or beside & suspects or row.digest in beside:
            return None
        return [other for other in waiting.values() if other.digest in beside]


def settle(
    opened: Opened,
    digest: str,
    *,
    promoted: bool,
    by: Literal["rule", "operator"],
    reason: str,
    campaign: int | None,
    now: datetime,
) -> None:
    """Sign a decision about a candidate and carry it out.

    The one new expert of a candidate that is held back is told why, and not proposed again; of several, none is
    condemned: the worker proposes each of them once more, alone.

    Args:
        opened: The workspace.
        digest: The candidate.
        promoted: Whether it becomes the newest release.
        by: Who decides.
        reason: One public sentence.
        campaign: The campaign whose answers were weighed, if there was one.
        now: The time.

    Raises:
        Refused: `CANDIDATE_UNKNOWN`, `STATE_CHANGE` if something newer came meanwhile, or for an older registry
            `REGISTRY_OLDER`, `LOG_ROLLBACK` or `LOG_FORK`.
    """
    registry, identity = opened.registry, opened.signer(Duty.RELEASES)
    row = Candidates(registry).find(digest)
    if row is None:
        raise no_candidate(digest)
    candidate = read_candidate(row.envelope, opened.pool)
    decision = Decision(
        pool=opened.pool.digest, candidate=row.digest, promoted=promoted, by=by, reason=reason, campaign=campaign,
        created=timestamp(now),
    )  # fmt: skip
    decide = partial(_decide, decision=decision, envelope=sign_decision(decision, identity), now=now)
    if promoted:
        opened.high_water.check()
        newest = registry.releases.find()
        if candidate.spec.previous != (newest.digest if newest else None):
            raise Refused(
                Code.STATE_CHANGE,
                f"Candidate {row.digest[:16]} does not continue the newest release.",
                "Wait for the worker's next candidate.",
            )
        expires = now + timedelta(days=opened.pool.spec.policy.release_days)
        said = {"checkpoint": opened.checkpoints.newest().text()}
        said |= {"created": timestamp(now), "expires": timestamp(expires)}
        spec = candidate.spec.model_copy(update=said)
        registry.releases.publish(sign_release(spec, identity), now=now, decide=decide)
    else:
        with registry.writing() as session:
            decide(session)
            new = BundleRow.digest.in_(journal.bundles_of(row)), BundleRow.state == State.ACCEPTED
            condemned = session.scalars(select(BundleRow).where(*new)).all()
            if len(condemned) == 1:
                condemned[0].code, condemned[0].message = Code.HELD_BACK.name, reason
                condemned[0].hint = "Train it longer or on other data, and let the new bundle supersede it."


def _decide(session: Session, decision: Decision, envelope: bytes, *, now: datetime) -> None:
    row = session.scalars(select(Candidate).where(Candidate.digest == decision.candidate)).one()
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


def base_of(opened: Opened, *, candidate: str = "", release: str = "") -> Release:
    """Find the list that is calibrated: the one that is named, or else the open candidate or the newest release.

    Raises:
        Refused: `RELEASE_UNKNOWN` if there is none, or not the one that is named.
    """
    if not release and (row := Candidates(opened.registry).find(candidate)):
        return read_candidate(row.envelope, opened.pool)
    releases = opened.registry.releases
    if not candidate and (found := releases.by_digest(release) if release else releases.find()):
        return read_release(found.envelope, opened.pool)
    if candidate or release:
        raise Refused(Code.RELEASE_UNKNOWN, "The list that was calibrated is gone.", "Restore the registry.")
    raise Refused(Code.RELEASE_UNKNOWN, "There is neither a candidate nor a release to calibrate.", "Train first.")
