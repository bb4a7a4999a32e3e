"""A finished training run on disk: what packing needs to know, and nothing about the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from protocol import statement, strict_json
from protocol.adapters import BottleneckModule, DoraModule, Ia3Module, LoraModule, Module, RsLoraModule, Shape
from protocol.bundle import GATES
from protocol.errors import Code, Refused
from protocol.spec import Dtype, Name, PoolSpec, Promise, Recipe, Sha256, Statistics
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


def coarse(rows: int) -> str:
    """Name the power of ten that a number of rows falls into."""
    if rows < 100:  # noqa: PLR2004 - the first bucket
        return "fewer than 100"
    low = 10 ** (len(str(rows)) - 1)
    return f"{low:,} to {10 * low:,}"


def plan_modules(pool: PoolSpec, recipe: Recipe) -> dict[str, Module]:
    """Lay one module of the recipe's kind over every module of the pool.

    Raises:
        Refused: `RANK_OUT_OF_BOUNDS`.
    """
    narrowest = min(min(shape.d_in, shape.d_out) for shape in pool.modules.values())
    limit = min(pool.policy.max_rank, narrowest)
    if recipe.kind != "ia3" and recipe.rank > limit:
        raise Refused(
            Code.RANK_OUT_OF_BOUNDS,
            f"Rank {recipe.rank} is too large; the pool takes at most {pool.policy.max_rank} and the base's narrowest "
            f"module is {narrowest} wide.",
            f"Give --rank {limit} or less.",
        )
    return lay_modules(pool.modules, recipe)


def lay_modules(shapes: Mapping[str, Shape], recipe: Recipe) -> dict[str, Module]:
    """Lay one module of a recipe's kind over every linear module.

    (IA)3 scales outputs, but for the modules that read the widest input, the second half of a feed-forward
    block: there it scales the input, as its paper does.

    Args:
        shapes: Linear modules by path.
        recipe: Kind, rank and alpha.
    """
    widest = max(shape.d_in for shape in shapes.values())
    return {path: _lay(shape.d_in, shape.d_out, recipe, widest) for path, shape in sorted(shapes.items())}


def _lay(d_in: int, d_out: int, recipe: Recipe, widest: int) -> Module:
    rank, alpha = recipe.rank, recipe.alpha
    match recipe.kind:
        case "lora":
            return LoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha)
        case "rslora":
            return RsLoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha)
        case "dora":
            return DoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha)
        case "ia3":
            return Ia3Module(d_in=d_in, d_out=d_out, side="input" if d_out < d_in == widest else "output")
        case "bottleneck":
            return BottleneckModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha, activation=recipe.activation)


def read_record(folder: Path) -> RunRecord | None:
    """Read the record of a run; None for a run that is not finished."""
    path = folder / RECORD
    if not (path.is_file() and (folder / GATES).is_file() and (folder / ADAPTER).is_dir()):
        return None
    return statement.read(RunRecord, strict_json.loads(path.read_bytes(), what=RECORD), what=RECORD)


def dump_record(record: RunRecord) -> bytes:
    """Write a record as JSON."""
    return strict_json.dumps(record.model_dump(mode="json"))


def read_statistics(folder: Path) -> Statistics:
    """Read what a folder's gates.safetensors holds beside gates."""
    path = folder / STATISTICS
    if not path.is_file():
        return Statistics()
    return statement.read(Statistics, strict_json.loads(path.read_bytes(), what=STATISTICS), what=STATISTICS)
