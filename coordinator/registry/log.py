"""The transparency log: the journal's events are its entries, and beside them the tree over them is kept.

The tree grows in the transaction that writes the event, so nothing is acknowledged that is not in the log, and two
processes cannot grow it in two ways. Perfect subtrees never change: an entry adds two rows on average, at any size.
"""

from collections.abc import Iterable, Mapping

from sqlalchemy import Select, func, insert, select
from sqlalchemy.orm import Session

from coordinator.registry.tables import Cosigned, Event, LogNode
from coordinator.registry.transactions import Subject
from protocol.errors import Code, Refused
from protocol.log import merkle
from protocol.log.leaf import LogLeaf
from protocol.log.merkle import Span, Subtree, leaf_hash

ENTRY = (Event.number, Event.at, Event.kind, Event.subject, Event.step, Event.actor, Event.code)
"""What of an event is in the log: not its sentence, which is the contributor's and the operator's."""
PAGE = 1000
"""Most entries that are read at once."""


class Log(Subject):
    """The log: how large it is, what is in it, and proofs of both."""

    def size(self) -> int:
        """How many entries there are."""
        with self._registry.reading() as session:
            return read_size(session)

    def root(self, size: int) -> bytes:
        """The root when the log had so many entries (`REQUEST_INVALID`)."""
        with self._registry.reading() as session:
            return read_root(session, size)

    def leaves(self, start: int, count: int) -> list[bytes]:
        """Return entries as they are hashed, from an index on: `count`, or a page, or those that are there."""
        with self._registry.reading() as session:
            return [encode(row) for row in session.execute(entries(start, start + min(count, PAGE)))]

    def find(self, kind: str, subject: str, step: str) -> tuple[int, bytes] | None:
        """Find the newest entry that says something, as its index and as it is hashed."""
        about = Event.subject == subject, Event.kind == kind, Event.step == step
        with self._registry.reading() as session:
            row = session.execute(select(*ENTRY).where(*about).order_by(Event.number.desc()).limit(1)).one_or_none()
        return None if row is None else (row.number - 1, encode(row))

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Prove that an entry is in the log as it was with so many entries (`REQUEST_INVALID`)."""
        if index >= size:
            raise _beyond(size)
        return self._proof(merkle.inclusion_spans(index, size), size)

    def consistency(self, first: int, second: int) -> list[bytes]:
        """Prove that the log as it was with `second` entries continues what it was with `first` (`REQUEST_INVALID`)."""
        if first > second:
            raise _beyond(second)
        return self._proof(merkle.consistency_spans(first, second), second)

    def cosigned(self) -> list[bytes]:
        """The last checkpoint of each witness."""
        with self._registry.reading() as session:
            return list(session.scalars(select(Cosigned.note).order_by(Cosigned.witness)))

    def keep_cosigned(self, witness: str, size: int, note: bytes) -> None:
        """Keep the last checkpoint of a witness, unless it has signed for more."""
        with self._registry.writing() as session:
            if (row := session.get(Cosigned, witness)) is None or row.size <= size:
                session.merge(Cosigned(witness=witness, size=size, note=note))

    def _proof(self, spans: list[Span], size: int) -> list[bytes]:
        with self._registry.reading() as session:
            _check_size(session, size)
            hashes = read_hashes(session, (subtree for span in spans for subtree in merkle.perfect(span)))
        return [merkle.span_hash(span, hashes) for span in spans]


def append(session: Session, event: Event) -> None:
    """Put the newest event into the log, in the transaction that writes it."""
    index, leaf = event.number - 1, leaf_hash(encode(event))
    edge = read_hashes(session, merkle.perfect(Span(0, index)))
    store(session, dict(merkle.grow(index, [leaf], edge)))


def encode(row: Event | object) -> bytes:
    """Write an event, or a row of `ENTRY`, as the log hashes it."""
    return LogLeaf.model_construct(**{column.key: getattr(row, column.key) for column in ENTRY}).encode()


def entries(start: int, end: int) -> Select[int, str, str, str, str, str, str]:
    """Ask for the entries from one index to before another, in order."""
    return select(*ENTRY).where(Event.number > start, Event.number <= end).order_by(Event.number)


def read_size(session: Session) -> int:
    """As `Log.size`, inside a transaction."""
    return session.scalar(select(func.max(Event.number))) or 0


def read_root(session: Session, size: int) -> bytes:
    """As `Log.root`, inside a transaction."""
    _check_size(session, size)
    return merkle.root(size, read_hashes(session, merkle.perfect(Span(0, size))))


def read_hashes(session: Session, subtrees: Iterable[Subtree]) -> dict[Subtree, bytes]:
    """Read the hashes of perfect subtrees; one that is not there has none."""
    wanted = {subtree.number: subtree for subtree in subtrees}
    rows = session.execute(select(LogNode.number, LogNode.sha256).where(LogNode.number.in_(wanted)))
    return {wanted[number]: sha256 for number, sha256 in rows}


def store(session: Session, hashes: Mapping[Subtree, bytes]) -> None:
    """Keep perfect subtrees."""
    rows = [{"number": subtree.number, "sha256": sha256} for subtree, sha256 in hashes.items()]
    session.execute(insert(LogNode), rows)


def fill(session: Session) -> None:
    """Grow the tree over all events of a registry that has none yet."""
    for start in range(0, read_size(session), PAGE):
        leaves = [leaf_hash(encode(row)) for row in session.execute(entries(start, start + PAGE))]
        edge = read_hashes(session, merkle.perfect(Span(0, start)))
        store(session, dict(merkle.grow(start, leaves, edge)))


def _check_size(session: Session, size: int) -> None:
    if size > (there := read_size(session)):
        raise _beyond(there)


def _beyond(size: int) -> Refused:
    return Refused(Code.REQUEST_INVALID, f"The log has {size} entries.", "Ask for its newest checkpoint first.")
