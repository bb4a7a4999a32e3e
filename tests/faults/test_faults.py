"""The judge of `make faults` finds what is planted; a few kills and all bad peers are played where there is time."""

import copy
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.submission import outbox
from coordinator.registry.registry import Registry
from coordinator.storage.blobs import Store
from protocol.documents import read_receipt
from protocol.log.checkpoint import sign_checkpoint
from protocol.signing import Identity
from tests.coordinator.workspace.test_restored import Place
from tests.faults import peers, verdict
from tests.faults.children import Child
from tests.faults.kills import Life
from tests.faults.verdict import Checked
from tests.house.sources import ROOT


class Kept(Place):
    """A workspace with two bundles, their receipts, and a reader's checkpoint."""

    def __init__(self, folder: Path, ada: Identity) -> None:
        super().__init__(folder, ada)
        self.bundles = [self.make(), self.make()]
        for bundle in self.bundles:
            self.submit(bundle)
        self.work()
        with self.open() as open_:
            rows = [open_.registry.bundles.find(bundle.digest) for bundle in self.bundles]
            receipts = [row.receipt for row in rows if row]
            note = open_.checkpoints.newest().note.encode()
            forged = sign_checkpoint(self.pool, 3, b"\1" * 32, open_.identity).note.encode()
        self.records = [outbox.submitted("e", read_receipt(raw, self.pool), raw) for raw in receipts]
        for name, seen in (("honest", note), ("deceived", forged)):
            (folder / name / "seen").mkdir(parents=True)
            (folder / name / "seen" / "1.txt").write_bytes(seen)

    def judged(self, *readers: str) -> tuple[int, int, int, int, int]:
        """Count what is present, doubled, missing in between, and forks of log and releases."""
        registry = Registry.open(f"sqlite:///{self.database}")
        try:
            checked = Checked(registry, self.store, self.pool)
            present = sum(map(checked.is_present, self.records))
            forks = checked.forks([self.folder / reader for reader in readers])
            return present, checked.doubled(), checked.holes(), forks, checked.broken_releases()
        finally:
            registry.close()

    def rows(self, statement: str) -> None:
        with sqlite3.connect(self.database) as database:
            database.execute("PRAGMA foreign_keys = OFF")
            assert database.execute(statement).rowcount


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("made"), Identity.generate())


@pytest.fixture
def kept(made: Kept, tmp_path: Path) -> Kept:
    """A copy, to plant something in."""
    mine = copy.copy(made)
    mine.folder = shutil.copytree(made.folder, tmp_path / "kept")
    mine.database, mine.store = mine.folder / "w" / "registry.db", Store(str(mine.folder / "w" / "store"))
    return mine


def lose_file(kept: Kept) -> None:
    (own, *_) = kept.files(kept.bundles[0]) - kept.files(kept.bundles[1])
    kept.store.remove(own)


FAULTS: dict[str, tuple[Callable[[Kept], None], tuple[int, int, int, int, int]]] = {
    "a file is lost": (lose_file, (1, 0, 0, 0, 0)),
    "a row is lost": (lambda kept: kept.rows("DELETE FROM bundles WHERE sequence = 1"), (1, 0, 1, 0, 0)),
    "another receipt": (lambda kept: kept.rows("UPDATE bundles SET receipt=x'7b' WHERE sequence = 1"), (1, 0, 0, 0, 0)),
    "steps twice": (lambda kept: kept.rows("UPDATE events SET step='received' WHERE step='verified'"), (2, 2, 0, 0, 0)),
    "a number left out": (lambda kept: kept.rows("UPDATE bundles SET sequence=7 WHERE sequence = 2"), (1, 0, 5, 0, 0)),
    "a release is lost": (lambda kept: kept.rows("DELETE FROM releases WHERE number = 1"), (2, 0, 0, 0, 2)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_is_counted(kept: Kept, fault: str) -> None:
    plant, found = FAULTS[fault]
    assert kept.judged("honest") == (2, 0, 0, 0, 0)
    plant(kept)
    assert kept.judged("honest") == found


def test_a_log_that_does_not_continue_what_was_seen_is_counted(kept: Kept) -> None:
    assert kept.judged("honest", "deceived")[3] == 1


PROMISES = {
    "acknowledged": 2, "present": 2, "doubled": 0, "holes": 0, "log_forks": 0, "release_forks": 0, "fsck": "clean",
    "refused": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "broken",
    [{"present": 1}, {"acknowledged": 0, "present": 0}, {"doubled": 1}, {"holes": 1}, {"log_forks": 1},
     {"release_forks": 1}, {"fsck": "status 4"}, {"refused": {"QUOTA": 1}}],
)  # fmt: skip
def test_one_broken_promise_is_one_too_many(broken: dict[str, Any]) -> None:
    assert verdict.is_kept(PROMISES)
    assert not verdict.is_kept(PROMISES | broken)


@pytest.mark.parametrize("broken", [{"succeeded": 9}, {"ratio": 3.01}, {"memory_mb": 301.0}])
def test_who_was_kept_out_is_one_too_many(broken: dict[str, Any]) -> None:
    good = {"honest": 10, "succeeded": 10, "ratio": 2.9, "memory_mb": 20.0}
    assert peers.is_kept(good)
    assert not peers.is_kept(good | broken)


class Mortal:
    """A process that has ended."""

    def __init__(self, status: int) -> None:
        self.status, self.started = status, 0.0


@pytest.mark.parametrize(
    ("status", "by_itself"), [(-signal.SIGKILL, False), (0, True), (1, True), (-signal.SIGSEGV, True)]
)
def test_whoever_ends_without_being_killed_did_not_come_back(status: int, by_itself: object) -> None:
    def start(_: str) -> Child:
        child: Any = Mortal(status)
        return child

    life = Life("worker", start, 1.0, random.Random(0))
    if by_itself:
        with pytest.raises(RuntimeError, match="ended by itself"):
            life.look()
    else:
        assert life.look() == life.killed == 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--kills", "25", "--seed", "7"), ("--peers",)], ids=["kills", "peers"])
def test_it_runs(options: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "--folder", str(tmp_path / "faults"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert json.loads(done.stdout.splitlines()[-1])["schema"] == 1
