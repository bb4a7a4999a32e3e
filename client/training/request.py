"""What is to be trained, checked before anything is loaded."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.runs.consent import Share, Sharing
from client.runs.record import read_record
from client.training.distributed import check_together, processes
from client.training.imported_adapter import read_adapter
from client.training.modules import plan_modules
from client.training.plan import FULL, Thrift, TrainingPlan
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.compatibility import check_told
from protocol.errors import Code, Refused
from protocol.spec import Name, Promise, Recipe
from protocol.statement import first_invalid

PRIVATE_KINDS = ("lora", "rslora")
"""Kinds of experts that can be trained with differential privacy."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, beyond the settings."""

    data: Path
    name: str | None = None
    """The expert's name; None takes the contributor's."""
    seed: int = 0
    device: str | None = None
    micro_batch: int | None = None
    """Examples in memory at once; a divisor of the batch."""
    overrides: Mapping[str, object] | None = None
    """Fields of the recipe that differ from the pool's; None means the pool's."""
    share: tuple[Share, ...] = ()
    """Statistics of the data that the bundle tells, too."""
    thrift: Thrift = FULL
    adapter: str | None = None
    """Folder or Hugging Face id of an adapter of which only the gates are trained."""
    privacy: Promise | None = None
    """What is promised to every example."""
    max_epsilon: float | None = None
    """What all private trainings of the workspace may come to; None sets no bound."""
    joint: bool = False
    """Gates are trained together with the expert, not after it."""


def planned(workspace: ClientWorkspace, settings: ClientSettings, order: TrainingRequest) -> TrainingPlan:
    """Check an order and fill in what it leaves open."""
    if not order.data.is_file():
        raise Refused(Code.DATA_UNREADABLE, f"There is no data file {order.data}.", "Check the path.")
    pool = workspace.pool(settings.pool_key)
    check_told({share.statistic for share in order.share}, pool.spec)
    recipe = override(pool.spec.recipe, order.overrides or {})
    adapter = None if order.adapter is None else read_adapter(order.adapter, pool.spec)
    if adapter is None:
        plan_modules(pool.spec, recipe)
    name = _expert_name(order.name or settings.name)
    check_together(order.device)
    _check_micro_batch(order.micro_batch, recipe)
    _check_privacy(order, recipe)
    return TrainingPlan(
        data=order.data,
        columns=settings.columns,
        base=settings.base,
        name=name,
        recipe=recipe,
        pool=pool,
        seed=order.seed,
        device=order.device,
        micro_batch=order.micro_batch,
        sharing=Sharing(order.share, settings.embedding, settings.share_epsilon),
        thrift=order.thrift,
        adapter=adapter,
        privacy=order.privacy,
        joint=order.joint,
    )


def override(recipe: Recipe, overrides: Mapping[str, object]) -> Recipe:
    """Replace fields of a recipe.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the flag.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Recipe.model_validate({**recipe.model_dump(), **given})
    except ValidationError as error:
        name, reason = first_invalid(error)
        flag = "--" + name.replace("_", "-")
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{flag} is wrong: {reason}.",
            "Give another value, or leave it out to take the pool's.",
        ) from error


def _check_micro_batch(micro_batch: int | None, recipe: Recipe) -> None:
    at_once = processes() * (micro_batch or 1)
    if recipe.batch_size % at_once:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"The {at_once} examples that are in memory at once are no divisor of the batch of {recipe.batch_size}.",
            "Choose a --micro-batch, and processes, that divide it.",
        )


def _check_privacy(order: TrainingRequest, recipe: Recipe) -> None:
    """Refuse a promise that training could not keep."""
    if order.privacy is None:
        return
    if recipe.kind not in PRIVATE_KINDS:
        raise Refused(
            Code.KIND_UNSUPPORTED,
            f"Experts of kind {recipe.kind} cannot be trained with differential privacy: opacus cannot take their "
            "gradients apart into examples.",
            f"Give --kind {' or '.join(PRIVATE_KINDS)}.",
        )
    breaking = {
        "--packing, where examples share rows": order.thrift.packing,
        "--recompute, where each example is seen twice": order.thrift.recompute,
        "--share, which tells about the data as they are": bool(order.share),
        "--joint": order.joint,
        "several processes, each of which would add noise of its own": processes() > 1,
    }
    for flag, given in breaking.items():
        if given:
            raise Refused(Code.SETTINGS_INVALID, f"--epsilon goes without {flag}.", "Leave one of them out.")
    if importlib.util.find_spec("opacus") is None:
        raise Refused(
            Code.SETTINGS_INVALID, "Training with differential privacy needs opacus, which is not installed.",
            "Install it with: pip install 'greylag[private]'",
        )  # fmt: skip


def check_budget(order: TrainingRequest, workspace: ClientWorkspace) -> None:
    """Refuse a training that would promise less than is left: what was trained before counts, epsilon by epsilon."""
    if order.privacy is None or order.max_epsilon is None:
        return
    finished = filter(None, map(read_record, sorted(workspace.runs.glob("*"))))
    spent = sum(record.privacy.epsilon for record in finished if record.privacy is not None)
    if spent + order.privacy.epsilon > order.max_epsilon:
        raise Refused(
            Code.BUDGET_EXHAUSTED,
            f"Training with epsilon {order.privacy.epsilon:g} passes the {order.max_epsilon:g} that all trainings "
            f"may come to; {spent:g} is spent.",
            "Raise max_epsilon, which is what an example can count on then, or train on other rows in a new workspace.",
        )


def _expert_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{name!r:.80} is no name for an expert.",
            "Use up to 64 lower-case letters, digits, dots, dashes and underscores.",
        ) from error
