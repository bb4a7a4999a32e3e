"""Sketches of experts: what was ever received stays comparable, also when its bytes are gone."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select

from coordinator.policy.lifecycle import State
from coordinator.registry import journal
from coordinator.registry.tables import BundleRow, Contributor, Sketch
from coordinator.registry.transactions import Subject

_PASSED = State.QUARANTINED, State.ACCEPTED, State.RELEASED, State.SUPERSEDED, State.YANKED
"""States behind the check of a bundle's content."""


class Known(NamedTuple):
    """An earlier bundle, as far as copies of it are concerned."""

    digest: str
    sequence: int
    name: str
    contributor: str
    """Its contributor's key."""
    called: str
    """Its contributor's name."""
    state: str
    sketch: bytes


class Sketches(Subject):
    """A sketch of every bundle whose content passed, but for copies."""

    def keep(self, digest: str, content: bytes) -> None:
        """Remember a bundle's sketch, unless there is one."""
        with self._registry.writing() as session:
            if session.get(Sketch, digest) is None:
                session.add(Sketch(bundle=digest, content=content))

    def lift(self, digest: str, *, now: datetime) -> None:
        """Let an expert that was refused or yanked come again."""
        with self._registry.writing() as session:
            session.merge(Sketch(bundle=digest, content=b""))
            journal.record(session, "check", digest, "unblocked", actor="operator", now=now)

    def before(self, sequence: int) -> list[Known]:
        """List what a bundle is compared with: all that came before it and is not a copy itself, in that order."""
        columns = (
            BundleRow.digest, BundleRow.sequence, BundleRow.name, BundleRow.contributor, Contributor.name,
            BundleRow.state, Sketch.content,
        )  # fmt: skip
        query = (
            select(*columns)
            .join(Sketch, Sketch.bundle == BundleRow.digest)
            .join(Contributor, Contributor.key == BundleRow.contributor)
            .where(BundleRow.sequence < sequence)
            .order_by(BundleRow.sequence)
        )
        with self._registry.reading() as session:
            return [Known(*row) for row in session.execute(query) if row.content]

    def any(self) -> bool:
        """Tell whether there is a sketch of anything."""
        with self._registry.reading() as session:
            return session.scalars(select(Sketch.bundle).limit(1)).first() is not None

    def missing(self) -> list[BundleRow]:
        """List bundles without a sketch, which an older version let in."""
        none = BundleRow.digest.not_in(select(Sketch.bundle))
        with self._registry.reading() as session:
            return list(session.scalars(select(BundleRow).where(BundleRow.state.in_(_PASSED), none)))
