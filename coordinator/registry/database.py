"""The connection to the registry's database, and the version of its schema."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from protocol.errors import Code, Refused, Unavailable

READ_ONLY = {"read_only": True}
"""Execution options of a transaction that will not write."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_WAIT_S = 30


def connect(url: str) -> Engine:
    """Open an engine; nothing is sent to the database yet.

    Raises:
        Refused: `SETTINGS_INVALID` for another database than SQLite or PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise _bad_url(url) from error
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed)
        case "postgresql":
            return create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,  # a restarted server costs one reconnection, not one failed call
                connect_args={"connect_timeout": _LOCK_WAIT_S, "client_encoding": "utf8"},
            )
    raise _bad_url(url)


def migrate(engine: Engine) -> None:
    """Bring the schema to what this version needs."""
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check_schema(engine: Engine) -> None:
    """Refuse a schema that is older or newer than this version (`SCHEMA_MISMATCH`)."""
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory(str(_MIGRATIONS))
    expected = script.get_current_head()
    if found == expected:
        return
    known = found is None or found in {revision.revision for revision in script.walk_revisions()}
    raise Refused(
        Code.SCHEMA_MISMATCH,
        f"The registry's schema is at revision {found or 'none'}; this version needs {expected}.",
        "Stop serve and worker, save a copy of the registry, then run: greylag-coordinator migrate"
        if known
        else "A newer version wrote it: install that version of greylag again.",
    )


def _bad_url(url: str) -> Refused:
    scheme = url.partition(":")[0][:40]  # the rest may hold a password
    return Refused(
        Code.SETTINGS_INVALID,
        f"The database URL ({scheme}:...) names no database that is spoken to here.",
        "Write sqlite:///FILE or postgresql://USER@HOST/NAME.",
    )


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _LOCK_WAIT_S})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late; see `begin`
        cursor = connection.cursor()
        # FULL: a receipt that was sent must survive a power cut; WAL with NORMAL may lose the last commits.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once when another one wrote in
        # between, whatever the busy timeout; taking the write lock first makes it wait instead.
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def translated() -> Iterator[None]:
    """Turn a failing database into an error that says to try again."""
    try:
        yield
    except (DBAPIError, NoConnectionError) as error:
        if isinstance(error, DBAPIError) and re.search("is full|No space left", str(error.orig)):
            raise Unavailable(Code.STORAGE_FULL, "The registry's disk is full.", "Try again later.") from error
        raise Unavailable(Code.BUSY, "The registry's database does not answer.", "Try again in a minute.") from error
