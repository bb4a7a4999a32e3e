"""Steps that other changes of the registry bring with them, inside their transactions."""

import json
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.registry import journal
from coordinator.registry.tables import Candidate, Node
from protocol.errors import Refused
from protocol.signing import Signed


def overtake(session: Session, *, now: datetime, listing: str | None = None) -> None:
    """Close the open candidate because something newer came, or because a bundle that it lists is out."""
    for row in session.scalars(select(Candidate).where(Candidate.state == "open")):
        if listing is None or listing in bundles_of(row):
            row.state = "overtaken"
            journal.record(session, "candidate", row.digest, "overtaken", actor="worker", now=now)


def bundles_of(row: Candidate) -> set[str]:
    """Digests of a candidate's bundles; a row that is damaged lists nothing, and holds up no other."""
    try:
        payload = Signed.parse(row.envelope).payload  # our own row; whoever acts on it verifies the signature
        return {expert["bundle"] for expert in json.loads(payload)["predicate"]["experts"]}
    except (Refused, ValueError, LookupError, TypeError):
        return set()


def revoke_nodes(session: Session, contributor: str, *, actor: str, now: datetime) -> None:
    """Take the nodes of a contributor out of use, for ever."""
    for node in session.scalars(select(Node).where(Node.contributor == contributor, Node.state == "active")):
        node.state = "revoked"
        journal.record(session, "node", node.fingerprint, "revoked", actor=actor, now=now)
