"""A finished training run on disk: what packing needs to know, and nothing about the data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from client.runs import history
from protocol import statement
from protocol.adapters import Module
from protocol.bundle import GATES
from protocol.files import strict_json
from protocol.spec import Dtype, Name, Promise, Recipe, Sha256, Statistics
from protocol.statement import Strict

ADAPTER = "adapter"
RECORD = "run.json"
STATISTICS = "statistics.json"
"""Beside gates that carry statistics."""

_LOSSES = {"base": "by the base alone", "expert": "with the expert", "gates": "with the expert under its gates"}


class RunRecord(Strict):
    """Facts of a finished run; written last, so a run with a record is whole."""

    version: Literal[1] = 1
    name: Name
    pool: Sha256
    recipe: Recipe
    modules: dict[str, Module]
    dtype: Dtype = "float32"
    """Of the expert's tensors."""
    adopted: bool = False
    """The expert was trained elsewhere, and only its gates by this recipe."""
    joint: bool = False
    """Expert and gates were trained together."""
    privacy: Promise | None = None
    """What was promised to every example."""
    steps: dict[Name, int]
    """Steps that each phase took."""
    losses: dict[Name, float]
    """Losses on the held-out rows, in nats a token, three digits: of the base alone, with the expert, with it gated."""
    boundary: float | None = None
    """Below which place, 0 to 1, a row was held out; None for the recipe's share."""
    rows: Annotated[str, Field(max_length=40)]
    """How many examples, as a power of ten: an exact count says more about the data than it should."""

    @property
    def loss(self) -> float:
        """On the held-out rows, of the expert under its gates."""
        return self.losses["joint" if self.joint else "gates"]

    def told_losses(self) -> str:
        """All of them, in words."""
        return ", ".join(f"{loss:.3f} {_LOSSES.get(name, _LOSSES['gates'])}" for name, loss in self.losses.items())


def coarse(rows: int) -> str:
    """Name the power of ten that a number of rows falls into."""
    if rows < 100:  # noqa: PLR2004 - the first bucket
        return "fewer than 100"
    low = 10 ** (len(str(rows)) - 1)
    return f"{low:,} to {10 * low:,}"


def is_finished(run: Path) -> bool:
    """Tell whether a training came to its end."""
    return (run / RECORD).is_file() and (run / GATES).is_file() and (run / ADAPTER).is_dir()


def read_record(run: Path) -> RunRecord:
    """Read the record of a finished run."""
    return statement.read(RunRecord, strict_json.loads((run / RECORD).read_bytes(), what=RECORD), what=RECORD)


def finished(runs: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Go through the finished runs of a workspace, in no order that means anything."""
    return ((run, read_record(run)) for run in sorted(runs.glob("*")) if is_finished(run))


def where_stopped(run: Path) -> str:
    """Tell how far an unfinished run has come; empty for one that begins anew."""
    for phase in reversed(history.PHASES):
        if (checkpoint := history.newest_checkpoint(run / phase)) is not None:
            return f"step {history.step_of(checkpoint)} ({phase})"
    return "its expert" if (run / ADAPTER).is_dir() else ""


def read_statistics(folder: Path) -> Statistics:
    """Read what a folder's gates.safetensors holds beside gates."""
    path = folder / STATISTICS
    if not path.is_file():
        return Statistics()
    return statement.read(Statistics, strict_json.loads(path.read_bytes(), what=STATISTICS), what=STATISTICS)
