"""The laboratory's contributors: greylag-client's own training, private rows in, signed bundles out.

Everything lies in folders of its own under a pool's folder and is taken from there the next time: `produce` knows its
finished runs by their data, recipe, base and seed.
"""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from client.job import produce
from client.progress import Progress
from client.runs.consent import Share
from client.training.plan import TrainingRequest
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.bundle import Bundle
from protocol.documents import Pool, read_pool
from protocol.files.atomic import write_whole
from protocol.settings import dump_settings
from protocol.signing import Identity
from protocol.spec import Recipe
from tests import factories
from tests.lab.world import Row

# What an expert tells beside its gates: all that any method of the table asks for.
SHARED = tuple(Share)
RECIPE = Recipe(
    rank=4, alpha=4.0, learning_rate=2e-3, weight_decay=0.01, expert_steps=200, gate_steps=100, batch_size=16,
    eval_every=200, held_out=0.05, max_input_tokens=64, max_target_tokens=32,
)  # fmt: skip
"""Found on experts' own tasks alone; no held-out score was looked at."""
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
_POOL_KEY, _POOL_FILE, _NOBODY = "operator.key", "pool.dsse.json", "127.0.0.1:1"
_SECONDS = "seconds.json"


def found_pool(folder: Path, base: Path | str, recipe: Recipe = RECIPE, layers: tuple[int, int] | None = None) -> Pool:
    """Sign a pool over a base model, once; from then on it is read.

    Args:
        folder: Where the pool and all its experts lie.
        base: Folder or Hugging Face id of the base model.
        recipe: What every contributor trains by.
        layers: The first and the last that experts touch; None for all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / _POOL_FILE).is_file():
            operator = Identity.generate()
            operator.save(folder / _POOL_KEY)
            write_whole(folder / _POOL_FILE, factories.make_pool(base, operator, recipe, layers).envelope)
    return read_pool((folder / _POOL_FILE).read_bytes())


def train_expert(
    folder: Path,
    base: Path | str,
    name: str,
    rows: Sequence[Row],
    seed: int,
    apart: str = "",
    **order: Any,
) -> Bundle:
    """Train one expert with its gates and statistics, as `greylag-client train` does.

    Args:
        folder: Of a pool that was founded.
        base: Folder or Hugging Face id of the base model.
        name: The expert's.
        rows: What the contributor has and nobody else sees.
        seed: Of initialisation and order.
        apart: Folder in the pool's for experts of the same names that are trained in another way.
        order: What else the client is told; fields of `TrainingRequest`.
    """
    pool = read_pool((folder / _POOL_FILE).read_bytes())
    workspace = ClientWorkspace(folder / apart / name)
    settings = ClientSettings(coordinator=_NOBODY, pool_key=pool.spec.coordinator, base=str(base), name=name)
    with workspace.lock():
        if not (workspace.root / settings.key).is_file():
            Identity.generate().save(workspace.root / settings.key)
        write_whole(workspace.settings_file, dump_settings(settings))
        write_whole(workspace.pool_file, pool.envelope)
        write_whole(workspace.root / "split.key", bytes(32))  # so that a suite is the same each time
        data = workspace.root / "private.jsonl"
        write_whole(data, "".join(json.dumps(row) + "\n" for row in rows).encode())
        wanted = TrainingRequest((data,), name=name, seed=seed, device="cpu", **{"share": SHARED, **order})
        clock = _Clock()
        bundle = produce(workspace, wanted, clock, NOW)
        if clock.seconds:
            write_whole(workspace.root / _SECONDS, json.dumps(clock.seconds).encode())
        return bundle


def read_seconds(folder: Path) -> dict[str, float]:
    """Read what the steps of each phase cost an expert in seconds of CPU, where it was trained in one go.

    Args:
        folder: Of its bundle.
    """
    path = folder.parents[1] / _SECONDS
    found: dict[str, float] = json.loads(path.read_bytes()) if path.is_file() else {}
    return found


class _Clock:
    """Tells what the steps of each phase cost this process."""

    def __init__(self) -> None:
        self._ends: dict[str, list[float]] = {}

    def __call__(self, event: Progress) -> None:
        self._ends.setdefault(event.phase, []).append(time.process_time())

    @property
    def seconds(self) -> dict[str, float]:
        # When a first step began is not told; the other steps stand for it.
        several = {phase: ends for phase, ends in self._ends.items() if len(ends) > 1}
        return {phase: (ends[-1] - ends[0]) * len(ends) / (len(ends) - 1) for phase, ends in several.items()}
