"""What a step costs when the journal is long: counted in what the database reads, not in time."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, text
from sqlalchemy.orm import Session

from coordinator.registry import database, log
from coordinator.registry.registry import Registry
from coordinator.registry.tables import Event
from protocol.documents import Enrolment, Pool
from protocol.signing import Identity
from tests.coordinator.conftest import Clock
from tests.coordinator.contributor import NOW

OLD = [
    {"number": at, "at": NOW, "kind": "bundle", "subject": f"{at:064x}", "step": "received", "actor": "contributor"}
    for at in range(1, 5001)
]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.connect(database_url)
    database.migrate(engine)
    with engine.begin() as connection:
        connection.execute(insert(Event), OLD)
        log.fill(Session(connection))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    yield engine
    engine.dispose()


def test_a_step_reads_no_more_when_the_journal_is_long(engine: Engine, pool: Pool, clock: Clock) -> None:
    asked: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda _1, _2, sql, values, *_: asked.append((sql, values)))
    key = Identity.generate().public.hex
    enrolment = Enrolment(pool=pool.digest, name="ada", key=key, created=NOW)
    Registry(engine).contributors.enrol(enrolment, b"", state="active", now=clock())
    about = [each for each in asked if "FROM events" in each[0]]
    assert about, "the number comes from the journal"
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.connect() as connection:
        plans = [str(row) for sql, values in about for row in connection.exec_driver_sql(explain + sql, values)]
    assert [line for line in plans if "SCAN events" in line or "Seq Scan on events" in line] == []
