"""What is asked to be trained, and the plan of it: all that decides how an expert comes out, checked before loading.

Light, so that a finished run is recognised without torch.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.data.columns import DataSource, check_file
from client.runs.consent import Share, Sharing
from client.runs.record import RunRecord
from client.training.distributed import check_together, processes
from client.training.imported_adapter import Adapter, read_adapter
from client.workspace.paths import ClientWorkspace
from protocol.adapters import BottleneckModule, DoraModule, Ia3Module, LoraModule, Module, RsLoraModule, Shape
from protocol.bundle import sha256_of
from protocol.compatibility import check_told
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.programs import needs
from protocol.spec import Dtype, Name, PoolSpec, Promise, Recipe
from protocol.statement import Document, first_invalid
from router.base.device_map import Bits

PRIVATE_KINDS = ("lora", "rslora")
"""Kinds of experts that can be trained with differential privacy."""
_LOW_RANK = {"lora": LoraModule, "rslora": RsLoraModule, "dora": DoraModule}


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, beyond the settings."""

    data: tuple[Path, ...]
    """Private files, which count as one."""
    name: str | None = None
    """The expert's name; None takes the contributor's."""
    seed: int = 0
    overrides: Mapping[str, object] = field(default_factory=dict)
    """Fields of the recipe that differ from the pool's; None means the pool's."""
    adapter: str | None = None
    """Folder or Hugging Face id of an adapter of which only the gates are trained."""
    joint: bool = False
    """Gates are trained together with the expert, not after it, to compare (arXiv 2402.05859, appendix A)."""
    privacy: Promise | None = None
    """What is promised to every example."""
    max_epsilon: float | None = None
    """What all private trainings of the workspace may come to; None sets no bound."""
    share: tuple[Share, ...] = ()
    """Statistics of the data that the bundle tells, too; the expert is the same with them and without."""

    # How training does with less memory or time; rounding apart, the expert comes out the same.
    device: str | None = None
    """`cpu` keeps training off a GPU, `auto` spreads the base; None takes what there is."""
    max_memory: Mapping[str, str] = field(default_factory=dict)
    """Most that a base that is spread takes of some devices, as in `router.base.loading.load_base`."""
    micro_batch: int | None = None
    """Examples in memory at once, a divisor of this process's part of the batch; None takes all of it."""
    dtype: Dtype | None = None
    """What the base is held and computes in; None for the checkpoint's. What is trained stays float32."""
    quantise: Bits | None = None
    """Bits of the base's weights, as in QLoRA (arXiv 2305.14314); None for those of `dtype`."""
    recompute: bool = False
    """Activations are computed again for the backward pass, not kept."""
    packing: bool = False
    """Examples of a batch share rows, without seeing each other."""


@dataclass(frozen=True)
class TrainingPlan:
    """A request that was checked, and what follows from it, settings and pool."""

    request: TrainingRequest
    workspace: ClientWorkspace
    name: str
    """The expert's name."""
    recipe: Recipe
    modules: Mapping[str, Module]
    """The expert's, by path."""
    adapter: Adapter | None
    """Trained elsewhere; only its gates are trained here."""

    @property
    def source(self) -> DataSource:
        """The private files."""
        return DataSource(self.request.data, self.workspace.settings.columns, self.workspace.split_key)

    @property
    def sharing(self) -> Sharing:
        """What the bundle tells about the data; it has no part in the run's name."""
        settings = self.workspace.settings
        rows = self.recipe.statistics_rows
        return Sharing(rows, self.request.share, settings.embedding, settings.share_epsilon)

    def run_id(self) -> str:
        """Name of the run's folder: equal input, equal name.

        Raises:
            Refused: `DATA_UNREADABLE`.
        """
        request, pool = self.request, self.workspace.pool
        for path in request.data:
            check_file(path)
        facts = {
            "data": [sha256_of(path) for path in request.data],
            "split": hashlib.sha256(self.source.split_key).hexdigest(),
            "columns": vars(self.source.columns),
            "base": pool.spec.base.model_dump(),
            "name": self.name,
            "pool": pool.digest,
            "recipe": self.recipe.model_dump(exclude={"statistics_rows"}),
            "seed": request.seed,
            "adapter": self.adapter and self.adapter.digest,
            "joint": request.joint,
            "privacy": request.privacy and request.privacy.model_dump(),
        }
        return hashlib.sha256(strict_json.dumps(facts)).hexdigest()[:16]


def make_plan(workspace: ClientWorkspace, request: TrainingRequest) -> TrainingPlan:
    """Check a request and fill in what it leaves open.

    Raises:
        Refused: `SETTINGS_INVALID`, `STATISTICS_MISSING`, `RANK_OUT_OF_BOUNDS`, `KIND_UNSUPPORTED`, or a code of the
            pool's document, of the adapter or of the key that splits rows.
    """
    pool, name = workspace.pool.spec, request.name or workspace.settings.name
    check_told({share.statistic for share in request.share}, pool)
    given = {field: value for field, value in request.overrides.items() if value is not None}
    recipe = from_flags(Recipe, {**pool.recipe.model_dump(), **given})
    adapter = None if request.adapter is None else read_adapter(request.adapter, pool)
    modules = plan_modules(pool, recipe) if adapter is None else adapter.modules
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{name!r:.80} is no name for an expert.",
            "Use up to 64 lower-case letters, digits, dots, dashes and underscores.",
        ) from error
    check_together(request.device)
    _check_micro_batch(request.micro_batch, recipe)
    _check_privacy(request, recipe)
    if workspace.settings.share_epsilon is not None and {Share.MEANS, Share.ALL_MEANS} & set(request.share):
        needs("dp_accounting", "private", "Noise on means")
    _ = workspace.split_key
    return TrainingPlan(request, workspace, name, recipe, modules, adapter)


def from_flags(document: type[Document], fields: Mapping[str, object]) -> Document:
    """Make a recipe, or a promise, of what flags say.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the flag.
    """
    try:
        return document.model_validate(fields)
    except ValidationError as error:
        name, reason = first_invalid(error)
        raise Refused(
            Code.SETTINGS_INVALID,
            f"--{name.replace('_', '-')} is wrong: {reason}.",
            "Give another value, or leave it out to take the default.",
        ) from error


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
            f"Rank {recipe.rank} is too large; the pool takes at most {pool.policy.max_rank} and its narrowest "
            f"module is {narrowest} wide.",
            f"Give --rank {limit} or less.",
        )
    return lay_modules(pool.modules, recipe)


def lay_modules(shapes: Mapping[str, Shape], recipe: Recipe) -> dict[str, Module]:
    """Lay one module of a recipe's kind over every linear module.

    (IA)3 scales outputs, but for the modules that read the widest input, the second half of a feed-forward
    block: there it scales the input, as its paper does.
    """
    widest = max(shape.d_in for shape in shapes.values())
    rank, alpha = recipe.rank, recipe.alpha

    def lay(d_in: int, d_out: int) -> Module:
        match recipe.kind:
            case "ia3":
                return Ia3Module(d_in=d_in, d_out=d_out, side="input" if d_out < d_in == widest else "output")
            case "bottleneck":
                return BottleneckModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha, activation=recipe.activation)
            case kind:
                return _LOW_RANK[kind](d_in=d_in, d_out=d_out, rank=rank, alpha=alpha)

    return {path: lay(shape.d_in, shape.d_out) for path, shape in sorted(shapes.items())}


def check_budget(request: TrainingRequest, finished: Iterable[RunRecord]) -> None:
    """Refuse a training that would promise less than is left: what was trained before counts, epsilon by epsilon.

    Raises:
        Refused: `BUDGET_EXHAUSTED`.
    """
    if request.privacy is None or request.max_epsilon is None:
        return
    spent = sum(record.privacy.epsilon for record in finished if record.privacy is not None)
    if spent + request.privacy.epsilon > request.max_epsilon:
        raise Refused(
            Code.BUDGET_EXHAUSTED,
            f"Training with epsilon {request.privacy.epsilon:g} passes the {request.max_epsilon:g} that all trainings "
            f"may come to; {spent:g} is spent.",
            "Raise max_epsilon, which is what an example can count on then, or train on other rows in a new workspace.",
        )


def _check_micro_batch(micro_batch: int | None, recipe: Recipe) -> None:
    at_once = processes() * (micro_batch or 1)
    if recipe.batch_size % at_once:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"The {at_once} examples that are in memory at once are no divisor of the batch of {recipe.batch_size}.",
            "Choose a --micro-batch, and processes, that divide it.",
        )


def _check_privacy(request: TrainingRequest, recipe: Recipe) -> None:
    """Refuse a promise that training could not keep."""
    if request.privacy is None:
        return
    if recipe.kind not in PRIVATE_KINDS:
        raise Refused(
            Code.KIND_UNSUPPORTED,
            f"Experts of kind {recipe.kind} cannot be trained with differential privacy: opacus cannot take their "
            "gradients apart into examples.",
            f"Give --kind {' or '.join(PRIVATE_KINDS)}.",
        )
    breaking = {
        "--packing, where examples share rows": request.packing,
        "--recompute, where each example is seen twice": request.recompute,
        "--share, which tells about the data as they are": bool(request.share),
        "--joint": request.joint,
        "several processes, each of which would add noise of its own": processes() > 1,
    }
    for flag, given in breaking.items():
        if given:
            raise Refused(Code.SETTINGS_INVALID, f"--epsilon goes without {flag}.", "Leave one of them out.")
    needs("opacus", "private", "Training with differential privacy")
