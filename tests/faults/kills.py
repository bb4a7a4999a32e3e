"""Kills `serve`, `worker` and contributors at random moments, restarts each at once, and asks what was kept."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from coordinator.faults import POINTS
from coordinator.policy.lifecycle import WAITING
from coordinator.registry.registry import Registry
from tests.faults import verdict
from tests.faults.children import Child
from tests.faults.contributor import contribute
from tests.faults.pool import START_S, Pool, found, must, tell, wait

ALL_POINTS = (*POINTS, "entries-kept")
EARLY, ARMED = 0.2, 0.25
"""Shares of the lives of `serve` that end during its start, and at a point where a test may kill it."""
SERVE_S, WORKER_S, CONTRIBUTOR_S, _ARMED_S = 0.8, 2.5, 12.0, 2.0
"""How long each lives, on average, once it has started."""
_LONGEST, _SETTLE_S, _LOOK_S = 4.0, 300.0, 0.01


class Life:
    """One program that is killed and started again, over and over.

    Args:
        name: What it is called.
        start: Starts it, given a place where it shall kill itself or none.
        mean_s: How long it lives on average.
        draw: Decides when it dies.
    """

    def __init__(self, name: str, start: Callable[[str], Child], mean_s: float, draw: random.Random) -> None:
        self.name, self._start, self._mean, self._draw = name, start, mean_s, draw
        self.killed = self.at_points = 0
        self.starts: list[float] = []
        """How long it took until `serve` said that it was ready, in seconds."""
        self._ready = self._early = self._armed = False
        self._due = 0.0
        self._revive()

    def look(self) -> int:
        """Let it die if its time has come, start it again, and return how many died."""
        if self.child.status is not None:
            must(self.child.status == -signal.SIGKILL, f"{self.name} ended by itself with status {self.child.status}.")
            self.at_points += 1
        else:
            if not self._ready and self.child.document():
                self._ready = True
                self.starts.append(time.monotonic() - self.child.started)
                self._due = min(self._due, time.monotonic() + self._span()) if self._early else self._later()
            must(self._ready or time.monotonic() < self.child.started + START_S, f"{self.name} does not start.")
            if time.monotonic() < self._due:
                return 0
            self.child.kill()
        self.killed += 1
        self._revive()
        return 1

    def _revive(self) -> None:
        self._armed = self.name == "serve" and self._draw.random() < ARMED
        self.child = self._start(self._draw.choice(ALL_POINTS) if self._armed else "")
        # Only `serve` says that it is ready; what dies early dies somewhere in the time that a start takes.
        self._ready, self._early = self.name != "serve", self._draw.random() < EARLY
        usual = median(self.starts[-20:]) if self.starts else START_S
        self._due = time.monotonic() + (self._span() if self._ready else START_S)
        if not self._ready and self._early and self.starts:
            self._due = time.monotonic() + self._draw.uniform(0, usual)

    def _later(self) -> float:
        return time.monotonic() + self._span()

    def _span(self) -> float:
        mean = _ARMED_S if self._armed else self._mean  # so that it comes by its place
        return min(self._draw.expovariate(1 / mean), _LONGEST * mean)


def play(folder: Path, *, kills: int, contributors: int, seed: int) -> dict[str, Any]:
    """Found a pool, kill so often, let everything settle, and hold it against what was promised.

    Raises:
        RuntimeError: Something did not come back by itself.
    """
    pool = found(folder, worker_interval_s="0.1", first_bundles="99", hourly_keys="1000")
    draw, began = random.Random(seed), time.monotonic()
    names = [f"contributor-{number}" for number in range(contributors)]

    def contributor(name: str, _: str) -> Child:
        arguments = (pool.folder / name, pool.address, pool.authority.ca, pool.base)
        return Child(contribute, *arguments, log=pool.log(name))

    lives = [
        Life("serve", lambda point: pool.serve(GREYLAG_FAULT_POINT=point), SERVE_S, draw),
        Life("worker", lambda _: pool.work(), WORKER_S, draw),
        *(Life(name, partial(contributor, name), CONTRIBUTOR_S, draw) for name in names),
    ]
    killed = told = 0
    while killed < kills:
        for life in lives:
            killed += life.look() if killed < kills else 0
        if killed >= told + 50:
            told = killed
            tell(f"{killed} of {kills} kills in {time.monotonic() - began:.0f} s: {_standing(pool)}")
        time.sleep(_LOOK_S)
    killing_s = time.monotonic() - began
    _settle(pool, lives, names)
    report = verdict.judge(pool, [pool.folder / name for name in names])
    by = Counter({life.name.partition("-")[0]: 0 for life in lives})
    for life in lives:
        by[life.name.partition("-")[0]] += life.killed
    return {
        "kills": killed, "killed": dict(by), "at_fault_points": lives[0].at_points, **report,
        "restart_s": round(median(lives[0].starts), 3) if lives[0].starts else None,
        "killing_s": round(killing_s, 1), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def _settle(pool: Pool, lives: list[Life], names: list[str]) -> None:
    """Kill no more: all that was sent is decided, everybody proves what they hold, and everything stops when asked."""
    serve, worker, *people = (life.child for life in lives)
    serve.kill()  # it may have a place left to die at
    serve = pool.serve()
    must(serve.document(START_S), f"serve does not start: {pool.log('serve').read_text()[-500:]}")
    (pool.folder / "stop").touch()
    tell("No more kills: what was sent is decided, and every receipt is proved.")
    for name, person in zip(names, people, strict=True):
        must(person.ended(_SETTLE_S) == 0, f"{name} does not come to an end: {pool.log(name).read_text()[-500:]}")
    wait(lambda: not _waiting(pool), _SETTLE_S, f"Bundles wait for ever: {_standing(pool)}")
    for name, child in (("worker", worker), ("serve", serve)):
        must(child.status is None, f"{name} ended by itself.")
        child.signal(signal.SIGTERM)
        must(child.ended(START_S) == 0, f"{name} does not stop when asked to: {child.status}.")


def _waiting(pool: Pool) -> list[str]:
    registry = Registry.open(f"sqlite:///{pool.workspace / 'registry.db'}")
    try:
        return [row.digest for row in registry.bundles.all(*WAITING)]
    finally:
        registry.close()


def _standing(pool: Pool) -> str:
    registry = Registry.open(f"sqlite:///{pool.workspace / 'registry.db'}")
    try:
        states, newest = Counter(row.state for row in registry.bundles.all()), registry.releases.find()
    finally:
        registry.close()
    kept = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{kept or 'no bundle yet'}; release {newest.number if newest else 0}"
