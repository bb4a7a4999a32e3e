"""What the transparency log costs at some sizes, beside a tree that is worked out anew from its leaves.

    python -m tests.bench.log

Progress on stderr; the last line of stdout is one JSON object. The registry is SQLite in a temporary folder. The rival
holds every leaf's hash in memory, which spares it the database, and hashes the whole tree for each root or proof, as
the prototype did that the first design was settled with.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from coordinator.registry import journal, log
from coordinator.registry.registry import Registry
from coordinator.registry.tables import Event
from protocol.log import merkle
from protocol.log.merkle import leaf_hash

SIZES = (1_000, 10_000, 100_000)
SAMPLES, RIVAL_SAMPLES = 200, 3
NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


def main() -> None:
    """Run all of it."""
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        for size in SIZES:
            with registry_of(size, Path(folder) / f"{size}.db") as registry:
                found[str(size)] = measure(registry, size)
            told = ", ".join(f"{name} {value:.3g}" for name, value in found[str(size)].items())
            sys.stderr.write(f"{size} entries: {told}\n")
    largest, smallest = found[str(SIZES[-1])], found[str(SIZES[0])]
    document = {
        "schema": 1,
        "sizes": found,
        "append_ratio_largest_to_smallest": round(largest["append_ms"] / smallest["append_ms"], 2),
        "proof_faster_than_recomputing": round(largest["recomputed_ms"] / largest["inclusion_ms"], 1),
    }
    sys.stdout.write(json.dumps(document) + "\n")


@contextmanager
def registry_of(size: int, path: Path) -> Iterator[Registry]:
    """Make a registry with so many events in its log."""
    registry = Registry.open(f"sqlite:///{path}", migrate=True)
    with registry.writing() as session:
        for start in range(0, size, 10_000):
            rows = [
                {"number": at, "at": "2026-12-01T12:00:00Z", "kind": "bundle", "subject": f"{at:064x}",
                 "step": "received", "actor": "contributor"}
                for at in range(start + 1, min(start + 10_000, size) + 1)
            ]  # fmt: skip
            session.execute(insert(Event), rows)
        log.fill(session)
    try:
        yield registry
    finally:
        registry.close()


def measure(registry: Registry, size: int) -> dict[str, float]:
    """Return medians in milliseconds: of an append, with and without its commit, of proofs, and of the rival."""
    draw = iter(range(10**9))

    def step(session: Session) -> None:
        journal.record(session, "bundle", f"{next(draw):064x}", "yanked", actor="operator", now=NOW)

    def committed() -> None:
        with registry.writing() as session:
            step(session)

    with registry.reading() as session:
        leaves = [leaf_hash(log.encode(row)) for row in session.execute(select(*log.ENTRY).order_by(Event.number))]
    with registry.writing() as session:
        bare = [timed(log.append, session, event) for event in events(session, size)]
    commits = [timed(committed) for _ in range(SAMPLES)]
    heads = registry.log.size()
    picks = [(number * 7919) % size for number in range(SAMPLES)]
    included = [timed(registry.log.inclusion, at, heads) for at in picks]
    continued = [timed(registry.log.consistency, at + 1, heads) for at in picks]
    rival = [timed(recompute, leaves, size // 3) for _ in range(RIVAL_SAMPLES)]
    figures = {"append_ms": bare, "step_with_commit_ms": commits, "inclusion_ms": included,
               "consistency_ms": continued, "recomputed_ms": rival}  # fmt: skip
    return {name: round(statistics.median(values), 3) for name, values in figures.items()}


def events(session: Session, size: int) -> Iterator[Event]:
    """Write events that are not in the log yet."""
    for number in range(size + 1, size + SAMPLES + 1):
        event = Event(
            number=number, at="2026-12-01T12:00:00Z", kind="bundle", subject=f"{number:064x}", step="received",
            actor="contributor", code="", message="",
        )  # fmt: skip
        session.add(event)
        session.flush()
        yield event


def recompute(leaves: list[bytes], index: int) -> list[bytes]:
    """Prove an entry by hashing the whole tree."""
    hashes = dict(merkle.grow(0, leaves, {}))
    return [merkle.span_hash(span, hashes) for span in merkle.inclusion_spans(index, len(leaves))]


def timed(work: Callable[..., object], *given: object) -> float:
    """Return the milliseconds that something takes."""
    start = time.perf_counter()
    work(*given)
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
