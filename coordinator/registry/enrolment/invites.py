"""Invites: each lets a number of new keys in, for a time, until an operator revokes it."""

import hashlib
import re
import secrets
from collections import defaultdict
from datetime import datetime
from hmac import compare_digest
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.registry import journal
from coordinator.registry.tables import Contributor, Invite
from coordinator.registry.transactions import Subject
from protocol.documents import timestamp
from protocol.errors import Code, Refused

_ID_BYTES, _SECRET_BYTES = 4, 16
_TOKEN = re.compile(r"([0-9a-f]{8})-[0-9a-f]{32}")
_WHY = {"revoked": "was revoked", "used": "is used up", "expired": "has expired"}
_ASK = "Ask the pool's operator for another, then: greylag-client init --coordinator HOST:PORT --invite TOKEN"


class Invited(NamedTuple):
    """An invite, and who came by it."""

    invite: Invite
    contributors: list[str]
    """Their names, in order of enrolment."""

    def state(self, now: datetime) -> str:
        """Say whether it still lets somebody in (open), or why not: revoked, used or expired."""
        return _state(self.invite, len(self.contributors), now)


class Invites(Subject):
    """Every invite that was ever made; the tokens themselves are kept nowhere."""

    def make(self, *, uses: int, expires: datetime, note: str, now: datetime) -> tuple[str, Invite]:
        """Make an invite.

        Args:
            uses: How many new keys it lets in.
            expires: Until when.
            note: For the operator alone.
            now: The time.

        Returns:
            The token to hand over, and what is kept of it.
        """
        name = secrets.token_hex(_ID_BYTES)
        token = f"{name}-{secrets.token_hex(_SECRET_BYTES)}"
        row = Invite(
            name=name, sha256=_digest(token), uses=uses, state="made", made=timestamp(now), expires=timestamp(expires),
            note=note,
        )  # fmt: skip
        with self._registry.writing() as session:
            session.add(row)
            journal.record(session, "invite", row.sha256, row.state, actor="operator", now=now)
        return token, row

    def all(self) -> list[Invited]:
        """All invites, oldest first."""
        came: dict[str | None, list[str]] = defaultdict(list)
        with self._registry.reading() as session:
            by_time = Contributor.enrolled, Contributor.key
            query = select(Contributor.invite, Contributor.name).where(Contributor.invite.is_not(None))
            for invite, name in session.execute(query.order_by(*by_time)):
                came[invite].append(name)
            rows = session.scalars(select(Invite).order_by(Invite.made, Invite.name))
            return [Invited(row, came[row.name]) for row in rows]

    def revoke(self, name: str, *, now: datetime) -> Invite:
        """Let nobody in by an invite any more; who came by it stays (`INVITE` for one that there is not)."""
        with self._registry.writing() as session:
            row = session.get(Invite, name)
            if row is None:
                raise Refused(Code.INVITE, f"There is no invite {name!r:.80}.", "See: greylag-coordinator invites ls")
            if row.state != "revoked":
                row.state = "revoked"
                journal.record(session, "invite", row.sha256, row.state, actor="operator", now=now)
            return row


def use(session: Session, token: str, *, now: datetime) -> str:
    """Take a token for one new key, in the transaction that remembers the key, and return the invite's name.

    Whoever does not hold the secret learns nothing of an invite, not whether there is one.

    Raises:
        Refused: `INVITE`.
    """
    row = session.get(Invite, found[1]) if (found := _TOKEN.fullmatch(token)) else None
    if not compare_digest(row.sha256 if row else "", _digest(token)) or row is None:
        raise Refused(Code.INVITE, "There is no such invite.", _ASK)
    used = session.scalar(select(func.count()).where(Contributor.invite == row.name)) or 0
    if (state := _state(row, used, now)) != "open":
        raise Refused(Code.INVITE, f"The invite {row.name} {_WHY[state]}.", _ASK)
    return row.name


def _state(row: Invite, used: int, now: datetime) -> str:
    if row.state == "revoked":
        return "revoked"
    if used >= row.uses:
        return "used"
    return "expired" if row.expires <= timestamp(now) else "open"


def _digest(token: str) -> str:
    # 128 random bits need no slow hash.
    return hashlib.sha256(token.encode()).hexdigest()
