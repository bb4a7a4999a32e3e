"""A finished training run on disk: what packing needs to know, and nothing about the data."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from protocol import statement, strict_json
from protocol.bundle import GATES
from protocol.errors import Code, Refused
from protocol.spec import LoraModule, Name, PoolSpec, Recipe, Sha256
from protocol.statement import Strict

ADAPTER = "adapter"
RECORD = "run.json"


class RunRecord(Strict):
    """Facts of a finished run; written last, so a run with a record is whole."""

    version: Literal[1] = 1
    name: Name
    pool: Sha256
    recipe: Recipe
    modules: dict[str, LoraModule]
    rows: Annotated[str, Field(max_length=40)]
    """How many examples, as a power of ten: an exact count says more about the data than it should."""


def coarse(rows: int) -> str:
    """Name the power of ten that a number of rows falls into."""
    if rows < 100:  # noqa: PLR2004 - the first bucket
        return "fewer than 100"
    low = 10 ** (len(str(rows)) - 1)
    return f"{low:,} to {10 * low:,}"


def lora_modules(pool: PoolSpec, recipe: Recipe) -> dict[str, LoraModule]:
    """Lay one LoRA module of the recipe's rank over every module of the pool.

    Raises:
        Refused: `RANK_OUT_OF_BOUNDS`.
    """
    narrowest = min(min(shape.d_in, shape.d_out) for shape in pool.modules.values())
    limit = min(pool.policy.max_rank, narrowest)
    if recipe.rank > limit:
        raise Refused(
            Code.RANK_OUT_OF_BOUNDS,
            f"Rank {recipe.rank} is too large; the pool takes at most {pool.policy.max_rank} and the base's narrowest "
            f"module is {narrowest} wide.",
            f"Give --rank {limit} or less.",
        )
    return {
        path: LoraModule(d_in=shape.d_in, d_out=shape.d_out, rank=recipe.rank, alpha=recipe.alpha)
        for path, shape in sorted(pool.modules.items())
    }


def read_record(folder: Path) -> RunRecord | None:
    """Read the record of a run; None for a run that is not finished."""
    path = folder / RECORD
    if not (path.is_file() and (folder / GATES).is_file() and (folder / ADAPTER).is_dir()):
        return None
    return statement.read(RunRecord, strict_json.loads(path.read_bytes(), what=RECORD), what=RECORD)


def dump_record(record: RunRecord) -> bytes:
    """Write a record as JSON."""
    return strict_json.dumps(record.model_dump(mode="json"))
