"""Transactions of the registry's database.

Every change is one transaction that also writes its events; what is to happen because of an event
(a log line, a counter) happens after the commit. Writers stand in line (SQLite: BEGIN IMMEDIATE,
PostgreSQL: one advisory lock), so that numbers have no holes and events lie in commit order.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from coordinator.policy.switches import Switch, check_open
from coordinator.registry import database
from coordinator.registry.tables import Event, SwitchRow
from protocol.errors import GreylagError

_WRITERS_LOCK = 0x677265796C6167  # any constant; all coordinators of one database share it


class Transactions:
    """Opens transactions on one database.

    Rows that are returned are detached: reading them costs nothing, changing them changes nothing.

    Args:
        engine: As `database.connect` makes it.
        on_event: Called after the commit for every event of a transaction.
    """

    def __init__(self, engine: Engine, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self._engine = engine
        self._reading = engine.execution_options(**database.READ_ONLY)
        self._on_event = on_event

    @classmethod
    def open(
        cls, url: str, on_event: Callable[[Event], None] = lambda _: None, *, migrate: bool = False, older: bool = False
    ) -> Self:
        """Connect to a registry.

        Args:
            url: SQLAlchemy URL.
            on_event: As for the class.
            migrate: Make or upgrade the schema first.
            older: Upgrade the schema of a registry that is there.

        Raises:
            Refused: `SETTINGS_INVALID`, `WORKSPACE_MISSING` where there is no registry, or `SCHEMA_MISMATCH` for an
                older or newer schema.
            Unavailable: `BUSY` if the database does not answer.
        """
        database.check_place(url, new=migrate)
        engine = database.connect(url)
        try:
            with database.translated(opening=True):
                if migrate:
                    database.migrate(engine)
                database.check_schema(engine, older=older)
                if older:
                    database.migrate(engine)
        except GreylagError:
            engine.dispose()
            raise
        return cls(engine, on_event)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that only reads."""
        with database.translated(), Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def writing(self, *, though_closed: bool = False) -> Iterator[Session]:
        """Open a transaction that writes; its events are announced after the commit.

        Args:
            though_closed: Whether it may write although an operator has made the registry read-only.

        Raises:
            Unavailable: `CLOSED`, or `BUSY` if the database does not answer.
        """
        with database.translated(), Session(self._engine, expire_on_commit=False) as session:
            with session.begin():
                if self._engine.dialect.name == "postgresql":
                    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITERS_LOCK})
                if not though_closed and (closed := session.get(SwitchRow, Switch.REGISTRY)):
                    check_open({Switch.REGISTRY: closed.reason}, Switch.REGISTRY)
                yield session
            events: Iterable[Event] = session.info.get("events", ())
        for event in events:
            self._on_event(event)


class Subject:
    """What a registry knows of one subject.

    Args:
        registry: Opens the transactions.
    """

    def __init__(self, registry: Transactions) -> None:
        self._registry = registry
