"""Does the log say what the registry's tables say, and is its tree the one that its entries make?"""

from collections import defaultdict
from collections.abc import Iterator

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import State
from coordinator.registry.enrolment.keys import ROTATED
from coordinator.registry.log import PAGE, encode, entries, read_hashes, read_size
from coordinator.registry.tables import BundleRow, Contributor, Invite, LogNode, ReleaseRow, RotationRow
from coordinator.registry.transactions import Transactions
from protocol.log import merkle
from protocol.log.merkle import Span, Subtree, leaf_hash

RESTORED = "restored"
"""Step of a pool after which tables lack what the log says before it: an older copy of the registry was restored."""
_Told = dict[tuple[str, str], list[tuple[int, str]]]
"""What the log says of a kind and a subject: numbers of entries and steps."""


def contradictions(registry: Transactions) -> list[str]:
    """Hold the log against its tree and against the tables, and say in sentences what is wrong, if anything."""
    with registry.reading() as session:
        if session.get_bind().dialect.name == "postgresql":  # all of it is to be of one moment
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        told: _Told = defaultdict(list)
        return [*_check_tree(session, told), *_check_tables(session, told)]


def _check_tree(session: Session, told: _Told) -> Iterator[str]:
    """Grow the tree anew, and collect what its entries say."""
    size, stored, latest, edge = read_size(session), 0, "", dict[Subtree, bytes]()
    for start in range(0, size, PAGE):
        rows = session.execute(entries(start, start + PAGE)).all()
        if [row.number for row in rows] != list(range(start + 1, min(start + PAGE, size) + 1)):
            yield f"Entries are missing among those from {start + 1} to {min(start + PAGE, size)}."
            return
        for row in rows:
            if row.at < latest:
                yield f"Entry {row.number} is dated before the one that it follows."
            latest = row.at
            told[row.kind, row.subject].append((row.number, row.step))
        grown = dict(merkle.grow(start, [leaf_hash(encode(row)) for row in rows], edge))
        found = read_hashes(session, grown)
        stored += len(found)
        wrong = [subtree for subtree in grown if found.get(subtree) != grown[subtree]]
        for first in [subtree for subtree in wrong if subtree.level == 0] or wrong[:1]:
            yield f"Entry {(first.position << first.level) + 1} is not the one that was logged."
        edge = {subtree: (edge | grown)[subtree] for subtree in merkle.perfect(Span(0, start + len(rows)))}
    if stored < (there := session.scalar(select(func.count()).select_from(LogNode)) or 0):
        yield f"The tree has {there - stored} nodes more than its entries make."


def _check_tables(session: Session, told: _Told) -> Iterator[str]:
    of_pool = [entry for (kind, _), said in told.items() if kind == "pool" for entry in said]
    excused = max((number for number, step in of_pool if step == RESTORED), default=0)
    tables = {
        "bundle": {row.digest: row.state for row in session.execute(select(BundleRow.digest, BundleRow.state))},
        "contributor": _keys(session),
        "invite": {row.sha256: row.state for row in session.execute(select(Invite.sha256, Invite.state))},
        "release": {digest: str(n) for digest, n in session.execute(select(ReleaseRow.digest, ReleaseRow.number))},
    }
    for kind, rows in tables.items():
        for subject, state in rows.items():
            said = told.get((kind, subject), [])
            steps = [step for _, step in said]
            if not said or not (steps[-1] == state or (said[-1][0] <= excused and state in steps)):
                yield f"The {kind} {subject[:16]} is {state}; the log says {steps[-1] if steps else 'nothing of it'}."
    for (kind, subject), said in told.items():
        begins = kind != "bundle" or said[0][1] == State.RECEIVED
        if kind in tables and begins and subject not in tables[kind] and said[0][0] > excused:
            yield f"Entry {said[0][0]} tells of the {kind} {subject[:16]}, which the registry does not hold."


def _keys(session: Session) -> dict[str, str]:
    """The state of every key: its contributor's, but for those that others took the place of."""
    states = {row.key: row.state for row in session.execute(select(Contributor.key, Contributor.state))}
    rotations = session.execute(select(RotationRow.new, RotationRow.old, RotationRow.contributor)).all()
    keys = states | {row.new: states[row.contributor] for row in rotations}
    return keys | {row.old: ROTATED for row in rotations}
