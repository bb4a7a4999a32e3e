import sqlite3
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from coordinator.registry import database
from coordinator.registry.registry import Registry
from coordinator.registry.tables import RegistryTable
from protocol.errors import Code, GreylagError, Refused, Unavailable


def test_migrations_make_the_declared_tables(database_url: str) -> None:
    engine = database.connect(database_url)
    database.migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), RegistryTable.metadata) == []
    engine.dispose()


def test_sqlite_survives_power_cuts(tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'r.db'}")
    with engine.connect() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    engine.dispose()
    assert pragmas == ["wal", 2, 1]


@pytest.mark.parametrize(("revision", "hint"), [(None, "greylag-coordinator migrate"), ("9999", "newer version")])
def test_another_schema_is_refused(database_url: str, revision: str | None, hint: str) -> None:
    if revision:
        engine = database.connect(database_url)
        database.migrate(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
        engine.dispose()
    with pytest.raises(Refused) as refused:
        Registry.open(database_url)
    assert refused.value.code is Code.SCHEMA_MISMATCH
    assert hint in refused.value.hint


@pytest.mark.parametrize("url", ["mysql://root:secret@localhost/x", "nonsense", "secret"])
def test_an_unknown_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(Refused) as refused:
        Registry.open(url)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "secret@" not in str(refused.value)


def test_a_database_that_does_not_answer_is_busy(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as unavailable:
        Registry.open(f"sqlite:///{tmp_path / 'no-such-folder' / 'r.db'}")
    assert unavailable.value.code is Code.BUSY


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'r.db'}")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            with pytest.raises(GreylagError) as full, database.translated():
                connection.exec_driver_sql("CREATE TABLE a (b)")
    finally:
        engine.dispose()
    assert full.value.code is Code.STORAGE_FULL


def test_whoever_gets_no_connection_is_told_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'r.db'}")
    monkeypatch.setattr(engine.pool, "_timeout", 0.01)

    def hold(connections: ExitStack) -> None:
        with database.translated():
            for _ in range(100):
                connections.enter_context(engine.connect())

    with ExitStack() as connections, pytest.raises(GreylagError) as busy:
        hold(connections)
    engine.dispose()
    assert busy.value.code is Code.BUSY


def test_the_lock_is_taken_before_the_first_read(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    engine = database.connect(f"sqlite:///{path}")
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        with engine.begin(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        with engine.execution_options(**database.READ_ONLY).begin():
            other.execute("BEGIN IMMEDIATE")
    finally:
        other.close()
        engine.dispose()
