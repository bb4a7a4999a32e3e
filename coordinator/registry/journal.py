"""The registry's journal: every step of an invite, key, node, bundle, candidate, release or campaign is one row.

It is written in the same transaction, and with it the log's tree grows. The steps that several changes take or bring
with them stand here, too.
"""

import json
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import State, check_step
from coordinator.registry import log
from coordinator.registry.enrolment.keys import in_force
from coordinator.registry.tables import BundleRow, Candidate, Contributor, Event, Node
from protocol.documents import timestamp
from protocol.errors import Code, GreylagError, Refused
from protocol.release import MAX_RELEASE_BYTES
from protocol.signing import Signed


def record(
    session: Session,
    kind: str,
    subject: str,
    step: str,
    *,
    actor: str,
    now: datetime,
    reason: GreylagError | None = None,
) -> Event:
    """Append one event; the session remembers it for whoever acts after the commit."""
    # Both by the table's own key: a search for the latest time would read every event there ever was.
    newest = select(func.max(Event.number)).scalar_subquery()
    latest = session.scalars(select(Event).where(Event.number == newest)).one_or_none()
    event = Event(
        number=latest.number + 1 if latest else 1,
        at=max(timestamp(now), latest.at if latest else ""),
        kind=kind, subject=subject, step=step, actor=actor,
        code=reason.code.name if reason else "", message=reason.message if reason else "",
    )  # fmt: skip
    session.add(event)
    session.flush()
    log.append(session, event)
    session.info.setdefault("events", []).append(event)
    return event


def take_step(
    session: Session, row: BundleRow, step: State, *, actor: str, now: datetime, reason: GreylagError | None = None
) -> None:
    """Take a bundle one step further.

    Raises:
        Refused: `STATE_CHANGE`, or for a step into a release by a key that may not submit `KEY_REVOKED` or
            `KEY_PENDING`.
    """
    check_step(row.digest, State(row.state), step)
    contributor = session.get_one(Contributor, row.contributor)
    if step in (State.ACCEPTED, State.RELEASED) and contributor.state == "pending":
        what = f"The key behind bundle {row.digest[:16]} waits for an operator's approval."
        raise Refused(
            Code.KEY_PENDING, what, f"Approve it: greylag-coordinator contributors approve {contributor.name}"
        )
    if step in (State.ACCEPTED, State.RELEASED) and contributor.state != "active":
        raise Refused(
            Code.KEY_REVOKED, f"The key behind bundle {row.digest[:16]} was revoked.", "The worker goes on without it."
        )
    row.state = step
    if reason is not None:
        row.code, row.message, row.hint = reason.code.name, reason.message, reason.hint
    record(session, "bundle", row.digest, step, actor=actor, now=now, reason=reason)


def overtake(session: Session, *, now: datetime, listing: str | None = None) -> None:
    """Close the open candidate because something newer came, or because a bundle that it lists is out."""
    for row in session.scalars(select(Candidate).where(Candidate.state == "open")):
        if listing is None or listing in bundles_of(row):
            row.state = "overtaken"
            record(session, "candidate", row.digest, "overtaken", actor="worker", now=now)


def bundles_of(row: Candidate) -> set[str]:
    """Digests of a candidate's bundles; a row that is damaged lists nothing, and holds up no other."""
    try:
        payload = Signed.parse(
            row.envelope, MAX_RELEASE_BYTES
        ).payload  # our own row; whoever acts on it verifies the signature
        return {expert["bundle"] for expert in json.loads(payload)["predicate"]["experts"]}
    except (Refused, ValueError, LookupError, TypeError):
        return set()


def pause(session: Session, key: str, *, actor: str, now: datetime, reason: GreylagError | None) -> None:
    """Let an active contributor wait for an operator's approval, and take what waits out of the open candidate."""
    contributor = session.get_one(Contributor, key)
    if contributor.state != "active":
        return
    contributor.state = "pending"
    record(session, "contributor", in_force(session, key), "pending", actor=actor, now=now, reason=reason)
    accepted = BundleRow.contributor == key, BundleRow.state == State.ACCEPTED
    for digest in session.scalars(select(BundleRow.digest).where(*accepted)).all():
        overtake(session, now=now, listing=digest)


def revoke_nodes(session: Session, contributor: str, *, actor: str, now: datetime) -> None:
    """Take the nodes of a contributor out of use, for ever."""
    for node in session.scalars(select(Node).where(Node.contributor == contributor, Node.state == "active")):
        node.state = "revoked"
        record(session, "node", node.fingerprint, "revoked", actor=actor, now=now)
