"""The registry: the only home of rows."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine, select

from coordinator.registry import journal
from coordinator.registry.bundles import Bundles
from coordinator.registry.enrolment.contributors import Contributors
from coordinator.registry.enrolment.invites import Invites
from coordinator.registry.log import Log
from coordinator.registry.releases import CapFiles, Releases
from coordinator.registry.sketches import Sketches
from coordinator.registry.switches import Switches
from coordinator.registry.tables import Event
from coordinator.registry.transactions import Transactions
from coordinator.registry.uploads import Uploads
from protocol.errors import Code, Refused


class Registry(Transactions):
    """Contributors, invites, uploads, bundles, releases and events in one database.

    Args:
        engine: As `database.connect` makes it.
        on_event: Called after the commit for every event of a transaction.
    """

    def __init__(self, engine: Engine, on_event: Callable[[Event], None] = lambda _: None) -> None:
        super().__init__(engine, on_event)
        self.contributors = Contributors(self)
        self.invites = Invites(self)
        self.uploads = Uploads(self)
        self.bundles = Bundles(self)
        self.releases = Releases(self)
        self.caps = CapFiles(self)
        self.sketches = Sketches(self)
        self.switches = Switches(self)
        self.log = Log(self)

    def claim(self, pool: str, *, now: datetime) -> None:
        """Make an empty registry a pool's for ever; the first event says whose it is.

        Raises:
            Refused: `SETTINGS_INVALID` if it is another pool's.
        """
        first = self.first_event()
        if first is None:
            with self.writing() as session:
                first = session.get(Event, 1) or journal.record(
                    session, "pool", pool, "founded", actor="operator", now=now
                )
        if first.kind == "pool" and first.subject != pool:
            raise Refused(
                Code.SETTINGS_INVALID,
                f"The database holds the registry of another pool, {first.subject[:16]}.",
                "Correct the setting `database`.",
            )

    def first_event(self) -> Event | None:
        """The first line of the journal; None for a registry that nobody has used."""
        with self.reading() as session:
            return session.get(Event, 1)

    def events(self, subject: str | None = None) -> list[Event]:
        """The journal, or what it says of one key or digest."""
        query = select(Event).order_by(Event.number)
        with self.reading() as session:
            return list(session.scalars(query if subject is None else query.where(Event.subject == subject)))
