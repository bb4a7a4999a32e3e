"""Takes entries of the log back in that a newer registry had written, so that the log goes on where it was."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import State
from coordinator.registry import journal
from coordinator.registry.bundles import bundle_row
from coordinator.registry.enrolment.keys import ROTATED, holder, owner
from coordinator.registry.log import encode, fill, read_root, read_size
from coordinator.registry.log_check import RESTORED
from coordinator.registry.tables import Event, Invite, LogNode, Node, RotationRow
from coordinator.registry.transactions import Transactions
from protocol.errors import Code, Refused
from protocol.log.leaf import LogLeaf


def take_in(
    registry: Transactions, entries: Sequence[LogLeaf], pool: str, *, signed: tuple[int, bytes], now: datetime
) -> list[str]:
    """Write lost entries down again, and what they say that must not be forgotten: who and what is out.

    What the older registry has written since it was restored was never signed for, and comes after them.

    Args:
        registry: The older registry.
        entries: All entries of the newer one.
        pool: Digest of the pool.
        signed: Size and root of the last checkpoint that was signed.
        now: The time.

    Returns:
        Digests of the bundles that are yanked by it.

    Raises:
        Refused: `LOG_FORK` if the entries are not those that were signed for.
    """
    with registry.writing() as session:
        there = session.scalars(select(Event).order_by(Event.number)).all()
        pairs = zip(there, entries, strict=False)
        common = next((at for at, (event, leaf) in enumerate(pairs) if encode(event) != leaf.encode()), len(there))
        common = min(common, len(entries))
        session.execute(delete(LogNode))
        session.execute(delete(Event).where(Event.number > common))
        lost, latest = entries[common:], entries[-1].at if entries else ""
        session.add_all(Event(**leaf.model_dump(), message="") for leaf in lost)
        session.add_all(
            Event(
                number=number, at=max(own.at, latest), kind=own.kind, subject=own.subject, step=own.step,
                actor=own.actor, code=own.code, message=own.message,
            )
            for number, own in enumerate(there[common:], len(entries) + 1)
        )  # fmt: skip
        session.flush()
        fill(session)
        if read_size(session) < signed[0] or read_root(session, signed[0]) != signed[1]:
            raise Refused(
                Code.LOG_FORK,
                f"The entries beside the registry are not those that were signed for, {signed[0]} of them.",
                "Restore a newer copy of the registry or of log.jsonl; without one, the pool's log has ended.",
            )
        _rotate(session, lost)
        yanked = [leaf.subject for leaf in lost if _shut_out(session, leaf)]
        journal.record(session, "pool", pool, RESTORED, actor="operator", now=now)
    return yanked


def _rotate(session: Session, lost: Sequence[LogLeaf]) -> None:
    """Let keys take others' places again: the entry after one that says so is of the key that came, by one commit."""
    for leaf, following in pairwise(lost):
        rotated = (leaf.kind, leaf.step, following.kind) == ("contributor", ROTATED, "contributor")
        if rotated and owner(session, leaf.subject) and not owner(session, following.subject):
            session.add(
                RotationRow(
                    new=following.subject, old=leaf.subject, contributor=holder(session, leaf.subject), envelope=b"",
                    rotated=leaf.at,
                )
            )  # fmt: skip
            session.flush()


def _shut_out(session: Session, leaf: LogLeaf) -> bool:
    """Do again what an entry says, if it shuts something out, and tell whether it yanked a bundle."""
    match leaf.kind, leaf.step:
        case "contributor", "revoked":
            if contributor := owner(session, leaf.subject):
                contributor.state = leaf.step
        case "invite", "revoked":
            for invite in session.scalars(select(Invite).where(Invite.sha256 == leaf.subject)):
                invite.state = leaf.step
        case "node", "revoked":
            if node := session.get(Node, leaf.subject):
                node.state = leaf.step
        case "bundle", (State.YANKED | State.REFUSED):
            if row := bundle_row(session, leaf.subject):
                row.state, row.code, row.hint = leaf.step, leaf.code, ""
                row.message = "Decided in a registry that was lost; only its code is known."
                return leaf.step == State.YANKED
    return False
