"""The registry's journal: every step of anything is one row, in the same transaction as the step."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import State, check_step
from coordinator.registry.tables import BundleRow, Contributor, Event
from protocol.documents import timestamp
from protocol.errors import Code, GreylagError, Refused


def record(  # one parameter a column
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
        kind=kind,
        subject=subject,
        step=step,
        actor=actor,
        code=reason.code.name if reason else "",
        message=reason.message if reason else "",
    )
    session.add(event)
    session.flush()
    session.info.setdefault("events", []).append(event)
    return event


def take_step(
    session: Session, row: BundleRow, step: State, *, actor: str, now: datetime, reason: GreylagError | None = None
) -> None:
    """Take a bundle one step further.

    Raises:
        Refused: `STATE_CHANGE`, or `KEY_REVOKED` for a step into a release by a key that was revoked meanwhile.
    """
    check_step(row.digest, State(row.state), step)
    if step in (State.ACCEPTED, State.RELEASED) and session.get_one(Contributor, row.contributor).state != "active":
        raise Refused(
            Code.KEY_REVOKED, f"The key behind bundle {row.digest[:16]} was revoked.", "The worker goes on without it."
        )
    row.state = step
    if reason is not None:
        row.code, row.message, row.hint = reason.code.name, reason.message, reason.hint
    record(session, "bundle", row.digest, step, actor=actor, now=now, reason=reason)
