"""Contributors: their names and keys, and whether they may submit."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.policy.eligibility import judge_contributor
from coordinator.registry import journal
from coordinator.registry.enrolment import invites
from coordinator.registry.enrolment.keys import ROTATED, all_in_force, in_force, key_state, owner, successor
from coordinator.registry.tables import Contributor, RotationRow
from coordinator.registry.transactions import Subject
from protocol.documents import Enrolment, Rotation, check_name, looks_like_key, timestamp
from protocol.errors import Code, Refused


def _nothing() -> None:
    """Refuse nothing."""


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
        check: Callable[[], None] = _nothing,
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
            Refused: `NAME_TAKEN`, `NAME_MISLEADING`, `KEY_REVOKED`, `KEY_ROTATED` or `INVITE`.
            GreylagError: Whatever `check` refuses with.
        """
        with self._registry.writing() as session:
            if (known := owner(session, enrolment.key)) is not None:
                if (standing := key_state(session, enrolment.key)) in ("revoked", ROTATED):
                    judge_contributor(standing)
                if known.name != enrolment.name:
                    raise Refused(Code.NAME_TAKEN, f"This key is enrolled as {known.name!r} already.", "Use that name.")
                return known.state
            check_name(enrolment.name)
            if session.scalar(select(Contributor.key).where(Contributor.name == enrolment.name)):
                raise Refused(
                    Code.NAME_TAKEN,
                    f"The name {enrolment.name!r} is taken.",
                    "Choose another name; if it is yours and the key is lost, see: greylag-client rotate-key --help",
                )
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

    def rotate(
        self, rotation: Rotation, envelope: bytes, *, now: datetime, check: Callable[[], None] = _nothing
    ) -> str:
        """Let a contributor's new key take the old one's place, and return its state; a second time changes nothing.

        Whatever the old key signed and was taken in stays the contributor's, but nothing more of it is taken in. Nodes
        that it bound go out of use.

        Args:
            rotation: What both keys say.
            envelope: The same, signed.
            now: The time.
            check: Called before a new key is remembered, to refuse it.

        Raises:
            Refused: `KEY_UNKNOWN`, `KEY_REVOKED`, `KEY_ROTATED`, or `NAME_TAKEN` for a key that is enrolled already.
            GreylagError: Whatever `check` refuses with.
        """
        with self._registry.writing() as session:
            contributor = owner(session, rotation.old)
            state = key_state(session, rotation.old)
            if contributor is not None and state == ROTATED and successor(session, rotation.old) == rotation.new:
                return contributor.state
            if contributor is None or state in ("revoked", ROTATED):
                judge_contributor(state)
            assert contributor is not None  # noqa: S101 - an unknown key was refused
            _check_new(session, rotation.new)
            check()
            _replace(session, contributor, rotation.old, rotation.new, envelope, actor="contributor", now=now)
            return contributor.state

    def recover(
        self, enrolment: Enrolment, *, decide: Callable[[str], bytes], reason: str, now: datetime
    ) -> Contributor:
        """Let a new key take the place of one that is lost or stolen; the contributor's state stays as it is.

        Args:
            enrolment: The new key under the contributor's name, which the key itself has signed.
            decide: Signs the decision about the key that goes.
            reason: Why.
            now: The time.

        Raises:
            Refused: `KEY_UNKNOWN` for a name that nobody has, `NAME_TAKEN` for a key that is enrolled already.
        """
        with self._registry.writing() as session:
            contributor = _find(session, enrolment.name)
            _check_new(session, enrolment.key)
            old = in_force(session, contributor.key)
            why = Refused(Code.KEY_ROTATED, reason)
            _replace(session, contributor, old, enrolment.key, decide(old), actor="operator", now=now, reason=why)
            return contributor

    def find(self, key: str) -> Contributor | None:
        """Look up who holds or held a key."""
        with self._registry.reading() as session:
            return owner(session, key)

    def named(self, name_or_key: str) -> Contributor:
        """Find a contributor as `set_state` does (`KEY_UNKNOWN`, `KEY_ROTATED`)."""
        with self._registry.reading() as session:
            return _find(session, name_or_key)

    def keys_of(self, contributor: str) -> set[str]:
        """Every key that a contributor, named as rows do, has or had."""
        with self._registry.reading() as session:
            later = session.scalars(select(RotationRow.new).where(RotationRow.contributor == contributor))
            return {contributor, *later}

    def all(self) -> list[Contributor]:
        """Everyone, in order of enrolment."""
        with self._registry.reading() as session:
            return list(session.scalars(select(Contributor).order_by(Contributor.enrolled, Contributor.key)))

    def keys(self) -> dict[str, str]:
        """The keys in force, by the contributors' first keys."""
        with self._registry.reading() as session:
            return all_in_force(session)

    def set_state(self, name_or_key: str, state: str, *, now: datetime) -> Contributor:
        """Approve (active) or revoke a contributor, and with one his nodes; 64 digits are a key, whoever is named so.

        Raises:
            Refused: `KEY_UNKNOWN`, or `KEY_ROTATED` for a key that can do nothing any more.
        """
        with self._registry.writing() as session:
            found = _find(session, name_or_key)
            if found.state != state:
                found.state = state
                journal.record(session, "contributor", in_force(session, found.key), state, actor="operator", now=now)
                if state == "revoked":
                    journal.revoke_nodes(session, found.key, actor="operator", now=now)
            return found


def _find(session: Session, name_or_key: str) -> Contributor:
    if looks_like_key(name_or_key):
        found = owner(session, name_or_key)
    else:
        found = session.scalar(select(Contributor).where(Contributor.name == name_or_key))
    if found is None:
        what = f"No contributor {name_or_key!r}."
        raise Refused(Code.KEY_UNKNOWN, what, "Try: greylag-coordinator contributors ls")
    if looks_like_key(name_or_key) and successor(session, name_or_key):
        what = f"Another key of {found.name} took this one's place; it can do nothing any more."
        raise Refused(Code.KEY_ROTATED, what, f"Say {found.name} if you mean the contributor.")
    return found


def _check_new(session: Session, key: str) -> None:
    if (other := owner(session, key)) is not None:
        raise Refused(Code.NAME_TAKEN, f"The new key is or was {other.name}'s.", "Make another key.")


def _replace(
    session: Session,
    contributor: Contributor,
    old: str,
    new: str,
    envelope: bytes,
    *,
    actor: str,
    now: datetime,
    reason: Refused | None = None,
) -> None:
    session.add(RotationRow(new=new, old=old, contributor=contributor.key, envelope=envelope, rotated=timestamp(now)))
    session.flush()
    journal.record(session, "contributor", old, ROTATED, actor=actor, now=now, reason=reason)
    journal.record(session, "contributor", new, contributor.state, actor=actor, now=now)
    journal.revoke_nodes(session, contributor.key, actor=actor, now=now)
