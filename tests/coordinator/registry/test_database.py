import shutil
import sqlite3
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from coordinator.registry import database
from coordinator.registry.registry import Registry
from coordinator.registry.tables import RegistryTable
from deploy.demo.processes import free_port
from protocol.errors import Code, GreylagError, Refused, Unavailable
from tests.house.sources import ROOT


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


def add_migration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the next version, which has one more table."""
    shutil.copytree(database._MIGRATIONS, folder / "migrations")
    text = "import sqlalchemy as sa\nfrom alembic import op\n\nrevision, down_revision = '9998', '0008'\n\n\n"
    text += "def upgrade() -> None:\n    op.create_table('more', sa.Column('number', sa.Integer()))\n"
    (folder / "migrations" / "versions" / "9998_more.py").write_text(text)
    monkeypatch.setattr(database, "_MIGRATIONS", folder / "migrations")


def test_an_older_schema_is_refused_until_it_is_upgraded(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Registry.open(database_url, migrate=True).close()
    add_migration(tmp_path, monkeypatch)
    with pytest.raises(Refused) as refused:
        Registry.open(database_url)
    assert refused.value.code is Code.SCHEMA_MISMATCH
    assert "greylag-coordinator migrate" in refused.value.hint
    Registry.open(database_url, migrate=True).close()
    Registry.open(database_url).close()


@pytest.mark.parametrize("revision", ["0001", "9999"])
def test_a_schema_of_another_version_is_refused(database_url: str, revision: str) -> None:
    Registry.open(database_url, migrate=True).close()
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    engine.dispose()
    with pytest.raises(Refused) as refused:
        Registry.open(database_url)
    assert refused.value.code is Code.SCHEMA_MISMATCH
    assert "Another version" in refused.value.hint


def test_the_golden_registry_has_the_declared_tables(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "golden" / "pool.tar.gz") as packed:
        packed.extract("pool/coordinator/registry.db", tmp_path, filter="data")
    engine = database.connect(f"sqlite:///{tmp_path / 'pool' / 'coordinator' / 'registry.db'}")
    database.migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), RegistryTable.metadata) == []
    engine.dispose()


@pytest.mark.parametrize("url", ["mysql://root:secret@localhost/x", "nonsense", "secret"])
def test_an_unknown_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(Refused) as refused:
        Registry.open(url)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "secret@" not in str(refused.value)


def test_a_database_that_does_not_answer_is_busy() -> None:
    with pytest.raises(Unavailable) as unavailable:
        Registry.open(f"postgresql://greylag@127.0.0.1:{free_port()}/registry")
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


def test_a_database_that_may_not_be_written_is_no_busy_one(tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'r.db'}")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
            with pytest.raises(GreylagError) as refused, database.translated(opening=True):
                connection.exec_driver_sql("CREATE TABLE a (b)")
            with pytest.raises(GreylagError) as later, database.translated():
                connection.exec_driver_sql("CREATE TABLE a (b)")
    finally:
        engine.dispose()
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "readonly" in refused.value.message
    assert later.value.code is Code.BUSY, "what worked when it was opened may work again"


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
