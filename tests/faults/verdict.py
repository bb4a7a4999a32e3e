"""Holds a pool that was killed again and again against what it said meanwhile."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from client.submission import outbox
from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow
from coordinator.storage.blobs import Store
from protocol.bundle import read_manifest
from protocol.documents import Pool as SignedPool
from protocol.documents import read_pool, read_receipt
from protocol.errors import Code
from protocol.log.checkpoint import read_checkpoint
from protocol.log.leaf import LogLeaf, read_leaf
from protocol.release import read_release
from tests.faults.pool import Pool

_CONTRADICTIONS = {Code.LOG_FORK.name, Code.LOG_ROLLBACK.name, Code.LOG_OMISSION.name}
_GONE = (State.REFUSED, State.YANKED)


def judge(pool: Pool, places: list[Path]) -> dict[str, Any]:
    """Count what holds and what does not; everything has been stopped, and each contributor has given account."""
    status, child = pool.verb("fsck", "--json")
    said = child.document() or {"healthy": False}
    registry = Registry.open(f"sqlite:///{pool.workspace / 'registry.db'}")
    try:
        signed = read_pool((pool.workspace / "pool.dsse.json").read_bytes())
        checked = Checked(registry, Store(str(pool.workspace / "store")), signed)
        acknowledged = [record for place in places for record in outbox.load(place / "outbox")]
        proved = {digest for place in places for digest in _read(place / "account.json")["proved"]}
        notes = [json.loads(line) for place in places for line in _lines(place / "notes.jsonl")]
        refused = Counter(note["code"] for note in notes if note.get("refused"))
        return {
            "acknowledged": len(acknowledged),
            "present": sum(checked.is_present(record) and record.digest in proved for record in acknowledged),
            "doubled": checked.doubled() + sum("fault" in note for note in notes),
            "holes": checked.holes(),
            "log_forks": checked.forks(places) + sum(refused[code] for code in _CONTRADICTIONS),
            "release_forks": checked.broken_releases(),
            "fsck": "clean" if status == 0 and said["healthy"] else f"status {status}",
            "bundles": dict(Counter(row.state for row in registry.bundles.all())),
            "releases": registry.releases.find().number if registry.releases.find() else 0,  # type: ignore[union-attr] # asked
            "log_entries": registry.log.size(),
            "checkpoints_seen": sum(1 for place in places for _ in (place / "seen").glob("*.txt")),
            "refused": dict(refused),
        }
    finally:
        registry.close()


def is_kept(report: dict[str, Any]) -> bool:
    """Tell whether every promise was kept."""
    nothing = ("doubled", "holes", "log_forks", "release_forks")
    return (
        report["acknowledged"] == report["present"] > 0
        and not any(report[name] for name in nothing)
        and report["fsck"] == "clean"
        and not report["refused"]
    )


class Checked:
    """What a registry and a store hold."""

    def __init__(self, registry: Registry, store: Store, pool: SignedPool) -> None:
        self._registry, self._store, self._pool = registry, store, pool
        self._rows = {row.digest: row for row in registry.bundles.all()}
        size = registry.log.size()
        self._leaves: list[LogLeaf] = [read_leaf(raw) for raw in _pages(registry, size)]
        self._said = {(leaf.kind, leaf.subject, leaf.step) for leaf in self._leaves}

    def is_present(self, record: outbox.Record) -> bool:
        """Tell whether what a receipt is for is there, under that receipt, in the log, and with every byte."""
        row = self._rows.get(record.digest)
        if row is None or row.receipt.decode() != record.receipt:
            return False
        kept = row.state in _GONE or all(map(self._store.verify, files_of(row)))
        receipt = read_receipt(row.receipt, self._pool)
        logged = ("bundle", record.digest, "received") in self._said
        return (receipt.bundle, receipt.sequence) == (record.digest, row.sequence) and logged and kept

    def doubled(self) -> int:
        """How many steps stand in the log twice, and numbers or names in tables."""
        steps = Counter((leaf.subject, leaf.step) for leaf in self._leaves if leaf.kind == "bundle")
        numbers = Counter(row.sequence for row in self._rows.values())
        released = [row for row in self._rows.values() if row.state == State.RELEASED]
        names = Counter((row.contributor, row.name) for row in released)
        return sum(count - 1 for counted in (steps, numbers, names) for count in counted.values())

    def holes(self) -> int:
        """How many numbers of receipts and entries were never given."""
        found = 0
        for numbers in ({row.sequence for row in self._rows.values()}, {leaf.number for leaf in self._leaves}):
            found += max(numbers, default=0) - len(numbers)
        return found

    def forks(self, places: Iterable[Path]) -> int:
        """How many checkpoints that somebody saw the log does not continue."""
        found = 0
        for place in places:
            for path in (place / "seen").glob("*.txt"):
                seen = read_checkpoint(path.read_bytes(), self._pool)
                found += seen.size > len(self._leaves) or self._registry.log.root(seen.size) != seen.root
        return found

    def broken_releases(self) -> int:
        """How many releases do not follow the one before them."""
        newest, found, before = self._registry.releases.find(), 0, None
        for number in range(1, newest.number + 1 if newest else 1):
            row = self._registry.releases.find(number)
            release = read_release(row.envelope, self._pool) if row else None
            found += release is None or (release.spec.number, release.spec.previous) != (number, before)
            before = release.digest if release else None
        return found


def files_of(row: BundleRow) -> list[str]:
    """The sha256 of every file of a bundle."""
    return [file.sha256 for file in read_manifest(row.envelope).files.values()]


def _pages(registry: Registry, size: int) -> Iterable[bytes]:
    start = 0
    while start < size:
        page = registry.log.leaves(start, min(256, size - start))
        yield from page
        start += len(page)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"proved": []}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
