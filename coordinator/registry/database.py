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

from coordinator.registry.tables import RegistryTable
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
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,  # a restarted server costs one reconnection, not one failed call
        connect_args={"connect_timeout": _LOCK_WAIT_S, "client_encoding": "utf8"},
    )


def anchor(url: str, folder: Path) -> str:
    """Write a database's URL so that it means the same everywhere; a relative file's path starts at a folder."""
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        parsed = parsed.set(database=str(folder.resolve() / _file(parsed)))
    return parsed.render_as_string(hide_password=False)


def check_place(url: str, *, new: bool) -> None:
    """Refuse a file that is not there, which SQLite would make, or for a new one a folder that is not there.

    Raises:
        Refused: `WORKSPACE_MISSING` or `SETTINGS_INVALID`.
    """
    if (parsed := _parse(url)).get_backend_name() != "sqlite":
        return
    file = _file(parsed)
    if not new and not file.is_file():
        raise _no_registry(f"The registry's database {file} is missing.")
    if not file.parent.is_dir():
        raise Refused(Code.SETTINGS_INVALID, f"The database's folder {file.parent} is missing.", "Make it first.")


def migrate(engine: Engine) -> None:
    """Make the tables in an empty database, or bring an older schema to what this version needs."""
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["connection"] = connection
        if MigrationContext.configure(connection).get_current_revision() is None:
            RegistryTable.metadata.create_all(connection)
            command.stamp(config, "head")
        command.upgrade(config, "head")


def check_schema(engine: Engine, *, older: bool = False) -> None:
    """Refuse a database without a registry, and a schema that is newer or, unless `older` may be, older.

    Raises:
        Refused: `WORKSPACE_MISSING` or `SCHEMA_MISMATCH`.
    """
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory(str(_MIGRATIONS))
    expected = script.get_current_head()
    if found is None:
        raise _no_registry("The database holds no registry.")
    known = found in {revision.revision for revision in script.walk_revisions()}
    if found == expected or (known and older):
        return
    raise Refused(
        Code.SCHEMA_MISMATCH,
        f"The registry's schema is at revision {found}; this version needs {expected}.",
        "Stop every process, save a copy of the registry, then run: greylag-coordinator migrate"
        if known
        else "Another version wrote it: install that version of greylag again.",
    )


def _parse(url: str) -> URL:
    try:
        if (parsed := make_url(url)).get_backend_name() in ("sqlite", "postgresql"):
            return parsed
    except ArgumentError:
        pass
    scheme = url.partition(":")[0][:40]  # the rest may hold a password
    raise Refused(
        Code.SETTINGS_INVALID,
        f"The database URL ({scheme}:...) names no database that is spoken to here.",
        "Write sqlite:///FILE or postgresql://USER@HOST/NAME.",
    )


def _file(parsed: URL) -> Path:
    return Path(parsed.database or "registry.db")


def _no_registry(what: str) -> Refused:
    return Refused(
        Code.WORKSPACE_MISSING,
        what,
        "Restore it from a copy, or name the pool's own: `database` in coordinator.toml, GREYLAG_COORDINATOR_DATABASE.",
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
def translated(*, opening: bool = False) -> Iterator[None]:
    """Turn a failing database into an error that says what to correct (most of it when opening), or to try again."""
    try:
        yield
    except UnicodeDecodeError as error:
        what = "The registry's database is damaged: it holds text that is none."
        raise Unavailable(
            Code.STORE_DAMAGED, what, "Restore it from a copy, or run: greylag-coordinator fsck"
        ) from error
    except (DBAPIError, NoConnectionError) as error:
        said = str(error.orig) if isinstance(error, DBAPIError) else ""
        if re.search("is full|No space left", said):
            raise Unavailable(Code.STORAGE_FULL, "The registry's disk is full.", "Try again later.") from error
        if wrong := re.search(r"FATAL:\s+((?:database|role|password) .*)", said):
            raise Refused(
                Code.SETTINGS_INVALID, f"PostgreSQL says: {wrong[1]}.", "Correct the database's URL."
            ) from error
        if opening and re.search("readonly database|unable to open", said):
            raise Refused(
                Code.SETTINGS_INVALID,
                f"The registry's database cannot be used: {said}.",
                "Check the owner and the permissions of the file and of its folder.",
            ) from error
        raise Unavailable(Code.BUSY, "The registry's database does not answer.", "Try again in a minute.") from error
