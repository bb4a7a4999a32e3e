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

LOSSES = {"base": "by the base alone", "expert": "with the expert", "gates": "with the expert under its gates"}
LOSSES["joint"] = LOSSES["gates"]


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
    rows: Annotated[str, Field(max_length=40)]
    """How many examples, as a power of ten: an exact count says more about the data than it should."""

    @property
    def loss(self) -> float:
        """On the held-out rows, of the expert under its gates."""
        return self.losses["joint" if self.joint else "gates"]


def coarse(rows: int) -> str:
    """Name the power of ten that a number of rows falls into."""
    if rows < 100:  # noqa: PLR2004 - the first bucket
        return "fewer than 100"
    low = 10 ** (len(str(rows)) - 1)
    return f"{low:,} to {10 * low:,}"


def read_record(folder: Path) -> RunRecord | None:
    """Read the record of a run; None for a run that is not finished."""
    path = folder / RECORD
    if not (path.is_file() and (folder / GATES).is_file() and (folder / ADAPTER).is_dir()):
        return None
    return statement.read(RunRecord, strict_json.loads(path.read_bytes(), what=RECORD), what=RECORD)


def dump_record(record: RunRecord) -> bytes:
    """Write a record as JSON."""
    return strict_json.dumps(record.model_dump(mode="json"))


def finished(runs: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Go through the finished runs of a workspace, in no order that means anything."""
    for run in sorted(runs.glob("*")):
        if (record := read_record(run)) is not None:
            yield run, record


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
