"""The log's tree in the registry, on each database: it grows with the journal, and proves what it says."""

import multiprocessing
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.registry import journal
from coordinator.registry.log_check import contradictions
from coordinator.registry.registry import Registry
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.log import merkle
from protocol.log.leaf import read_leaf
from protocol.log.merkle import leaf_hash
from tests.coordinator.conftest import Clock
from tests.coordinator.enroller import enrol_many
from tests.house.sources import ROOT


@pytest.fixture
def kept(database_url: str) -> Iterator[Registry]:
    registry = Registry.open(database_url, migrate=True)
    yield registry
    registry.close()


def grow(registry: Registry, clock: Clock, count: int) -> None:
    for number in range(count):
        with registry.writing() as session:
            journal.record(session, "bundle", f"{number:064x}", "yanked", actor="operator", now=clock())


def test_every_size_is_proved_to_every_later_one(kept: Registry, clock: Clock) -> None:
    roots = [merkle.EMPTY_ROOT]
    for _ in range(20):
        grow(kept, clock, 1)
        roots.append(kept.log.root(kept.log.size()))
    assert [kept.log.root(size) for size in range(21)] == roots, "a root stays what it was"
    leaves = kept.log.leaves(0, 99)
    for second in range(21):
        for first in range(second + 1):
            proof = kept.log.consistency(first, second)
            assert merkle.continues(first, roots[first], second, roots[second], proof)
        for index in range(second):
            proof = kept.log.inclusion(index, second)
            assert merkle.is_included(leaf_hash(leaves[index]), index, second, proof, roots[second])
    assert kept.log.find("bundle", f"{0:064x}", "yanked") == (19, leaves[19]), "the newest that says it"
    assert kept.log.find("bundle", f"{0:064x}", "received") is None
    for wrong in (lambda: kept.log.root(21), lambda: kept.log.inclusion(20, 20), lambda: kept.log.inclusion(0, 21),
                  lambda: kept.log.consistency(20, 21), lambda: kept.log.consistency(3, 2)):  # fmt: skip
        with pytest.raises(Refused) as refused:
            wrong()
        assert refused.value.code is Code.REQUEST_INVALID


def test_what_is_rolled_back_was_never_in_it(kept: Registry, clock: Clock) -> None:
    grow(kept, clock, 5)
    before = kept.log.root(5)

    def fail() -> None:
        with kept.writing() as session:
            journal.record(session, "bundle", "e" * 64, "yanked", actor="operator", now=clock())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (kept.log.size(), kept.log.root(5)) == (5, before)
    grow(kept, clock, 3)
    assert contradictions(kept) == []


def test_two_that_write_at_once_grow_one_tree(kept: Registry, database_url: str, pool: Pool, clock: Clock) -> None:
    start = multiprocessing.get_context("spawn")
    workers = [
        start.Process(target=enrol_many, args=(database_url, pool.digest, number, 25, clock())) for number in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [read_leaf(leaf).number for leaf in kept.log.leaves(0, 99)] == list(range(1, 51))
    assert contradictions(kept) == []


def test_an_older_registry_gets_the_tree_of_its_events(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "golden" / "pool.tar.gz") as packed:
        packed.extract("pool/coordinator/registry.db", tmp_path, filter="data")
    path = tmp_path / "pool" / "coordinator" / "registry.db"
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
    connection.close()
    registry = Registry.open(f"sqlite:///{path}", older=True)
    try:
        assert registry.log.size() == count > 10
        assert contradictions(registry) == []
    finally:
        registry.close()
