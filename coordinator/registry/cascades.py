"""Steps that other changes of the registry bring with them, inside their transactions."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.registry import journal
from coordinator.registry.tables import Candidate, Node


def overtake(session: Session, *, now: datetime) -> None:
    """Close the open candidate because something newer came."""
    for row in session.scalars(select(Candidate).where(Candidate.state == "open")):
        row.state = "overtaken"
        journal.record(session, "candidate", row.digest, "overtaken", actor="worker", now=now)


def revoke_nodes(session: Session, contributor: str, *, actor: str, now: datetime) -> None:
    """Take the nodes of a contributor out of use, for ever."""
    for node in session.scalars(select(Node).where(Node.contributor == contributor, Node.state == "active")):
        node.state = "revoked"
        journal.record(session, "node", node.fingerprint, "revoked", actor=actor, now=now)
