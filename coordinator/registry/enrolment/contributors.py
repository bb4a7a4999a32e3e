"""Keys, their names, and whether they may submit."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select

from coordinator.registry import journal
from coordinator.registry.enrolment import invites
from coordinator.registry.tables import Contributor
from coordinator.registry.transactions import Subject
from protocol.documents import Enrolment, check_name, looks_like_key, timestamp
from protocol.errors import Code, Refused


class Contributors(Subject):
    """Everyone who ever enrolled."""

    def enrol(
        self,
        enrolment: Enrolment,
        envelope: bytes,
        *,
        state: str | None,
        now: datetime,
        invite: str = "",
        check: Callable[[], None] = lambda: None,
    ) -> str:
        """Remember a key under its name, and return its state; a known pair stays as it is.

        Args:
            enrolment: Who presents itself.
            envelope: The same, signed.
            state: Of a new key that comes without an invite; None where it needs one.
            now: The time.
            invite: The token of an invite, by which a new key is active at once; empty without one.
            check: Called before a new key is remembered, to refuse it.

        Raises:
            Refused: `NAME_TAKEN`, `NAME_MISLEADING`, `KEY_REVOKED` or `INVITE`.
            GreylagError: Whatever `check` refuses with.
        """
        with self._registry.writing() as session:
            if (known := session.get(Contributor, enrolment.key)) is not None:
                if known.state == "revoked":
                    raise Refused(Code.KEY_REVOKED, "This key was revoked.", "Make a new key and enrol it.")
                if known.name != enrolment.name:
                    raise Refused(Code.NAME_TAKEN, f"This key is enrolled as {known.name!r} already.", "Use that name.")
                return known.state
            check_name(enrolment.name)
            if session.scalar(select(Contributor.key).where(Contributor.name == enrolment.name)):
                raise Refused(Code.NAME_TAKEN, f"The name {enrolment.name!r} is taken.", "Choose another name.")
            by = invites.use(session, invite, now=now) if invite else None
            if by is not None:
                state = "active"
            elif state is None:
                raise Refused(
                    Code.INVITE,
                    "The pool takes new keys by invitation alone.",
                    "Ask its operator for an invite, then: greylag-client init --coordinator HOST:PORT --invite TOKEN",
                )
            check()
            session.add(
                Contributor(
                    key=enrolment.key, name=enrolment.name, state=state, envelope=envelope, enrolled=timestamp(now),
                    invite=by,
                )
            )  # fmt: skip
            journal.record(session, "contributor", enrolment.key, state, actor="contributor", now=now)
            return state

    def find(self, key: str) -> Contributor | None:
        """Look up one key."""
        with self._registry.reading() as session:
            return session.get(Contributor, key)

    def all(self) -> list[Contributor]:
        """Everyone, in order of enrolment."""
        with self._registry.reading() as session:
            return list(session.scalars(select(Contributor).order_by(Contributor.enrolled, Contributor.key)))

    def set_state(self, name_or_key: str, state: str, *, now: datetime) -> Contributor:
        """Approve (active) or revoke a key, and with it its nodes; 64 digits are a key, whoever is named like it.

        Raises:
            Refused: `KEY_UNKNOWN`.
        """
        with self._registry.writing() as session:
            column = Contributor.key if looks_like_key(name_or_key) else Contributor.name
            found = session.scalar(select(Contributor).where(column == name_or_key))
            if found is None:
                raise Refused(
                    Code.KEY_UNKNOWN, f"No contributor {name_or_key!r}.", "Try: greylag-coordinator contributors ls"
                )
            if found.state != state:
                found.state = state
                journal.record(session, "contributor", found.key, state, actor="operator", now=now)
                if state == "revoked":
                    journal.revoke_nodes(session, found.key, actor="operator", now=now)
            return found
