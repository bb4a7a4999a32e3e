"""The registry: the only home of rows."""

from collections.abc import Callable

from sqlalchemy import Engine, select

from coordinator.registry.bundles import Bundles
from coordinator.registry.contributors import Contributors
from coordinator.registry.releases import Releases
from coordinator.registry.tables import Event
from coordinator.registry.transactions import Transactions
from coordinator.registry.uploads import Uploads


class Registry(Transactions):
    """Contributors, uploads, bundles, releases and events in one database.

    Args:
        engine: As `database.connect` makes it.
        on_event: Called after the commit for every event of a transaction.
    """

    def __init__(self, engine: Engine, on_event: Callable[[Event], None] = lambda _: None) -> None:
        super().__init__(engine, on_event)
        self.contributors = Contributors(self)
        self.uploads = Uploads(self)
        self.bundles = Bundles(self)
        self.releases = Releases(self)

    def events(self, subject: str | None = None) -> list[Event]:
        """The journal, or what it says of one key or digest."""
        query = select(Event).order_by(Event.number)
        with self.reading() as session:
            return list(session.scalars(query if subject is None else query.where(Event.subject == subject)))
