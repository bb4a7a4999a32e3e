"""Whose a key is: rows name a contributor by the first key, whichever is in force."""

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from coordinator.registry.tables import Contributor, RotationRow

ROTATED = "rotated"
"""State of a key whose place another took."""


def holder(session: Session, key: str) -> str:
    """Name whoever holds or held a key as rows do; a key that nobody knows stands for itself."""
    rotation = session.get(RotationRow, key)
    return rotation.contributor if rotation else key


def owner(session: Session, key: str) -> Contributor | None:
    """Find the contributor who holds or held a key."""
    return session.get(Contributor, holder(session, key))


def successor(session: Session, key: str) -> str | None:
    """Tell which key took a key's place, if one did."""
    return session.scalar(select(RotationRow.new).where(RotationRow.old == key))


def key_state(session: Session, key: str) -> str | None:
    """Tell how a key stands: as its contributor, but rotated if another took its place; None if nobody knows it."""
    contributor = owner(session, key)
    if contributor is None:
        return None
    return ROTATED if contributor.state != "revoked" and successor(session, key) else contributor.state


def in_force(session: Session, contributor: str) -> str:
    """Return the key with which a contributor, named as rows do, signs now."""
    return session.scalar(_last_keys().where(RotationRow.contributor == contributor)) or contributor


def all_in_force(session: Session) -> dict[str, str]:
    """As `in_force`, of everybody."""
    first = {key: key for key in session.scalars(select(Contributor.key))}
    later = session.execute(_last_keys().add_columns(RotationRow.contributor))
    return first | {contributor: key for key, contributor in later}


def _last_keys() -> Select[str]:
    """Ask for the keys that took others' places, and whose places none took."""
    return select(RotationRow.new).where(RotationRow.new.not_in(select(RotationRow.old)))
