"""The verb `train`: from a workspace and a data file to a signed bundle."""

import gc
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.bundle import pack
from client.progress import Report
from client.runs.consent import Share, Sharing
from client.runs.plot import draw
from client.runs.record import ADAPTER, LOSSES, plan_modules, read_record
from client.submission import outbox
from client.training.distributed import check_together, processes
from client.training.imported_adapter import read_adapter
from client.training.plan import FULL, Plan, Thrift
from client.workspace import keys
from client.workspace.paths import Workspace
from client.workspace.settings import ClientSettings
from protocol.bundle import ADAPTER_WEIGHTS, ENVELOPE, GATES, Bundle, open_bundle, sha256_of
from protocol.compatibility import check_told
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Name, Promise, Recipe
from protocol.statement import first_fault
from router.base.loading import check_base

PRIVATE_KINDS = ("lora", "rslora")
"""Kinds of experts that can be trained with differential privacy."""


@dataclass(frozen=True)
class Order:
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


def produce(
    workspace: Workspace,
    settings: ClientSettings,
    order: Order,
    report: Report,
    now: datetime,
    say: Callable[[str], object] = str,
) -> Bundle:
    """Train and pack one expert, or the gates of one; all that is cheap to check is checked before the slow part.

    Args:
        workspace: Locked by the caller.
        settings: Its settings.
        order: What to train.
        report: Told after every step.
        now: Time of signing.
        say: Told in sentences what came of it.

    Raises:
        Refused: A code of the data, the base, the key, the recipe or the adapter, or `BUDGET_EXHAUSTED`.
    """
    plan = _planned(workspace, settings, order)
    identity = keys.load(workspace.root / settings.key)
    check_base(settings.base, plan.pool.spec.base, workspace.base_cache)
    run = workspace.runs / plan.run_id()
    if read_record(run) is None:
        _check_budget(order, workspace)
    _train_what_is_missing(plan, run, report)
    for sentence in _result(run, plan):
        say(sentence)
    return _packed(workspace, settings, run, plan, identity, now)


def assist(workspace: Workspace, settings: ClientSettings, order: Order) -> None:
    """Train with a process that packs what comes out (`client.training.distributed`).

    Raises:
        Refused: As `produce`.
    """
    plan = _planned(workspace, settings, order)
    _train_what_is_missing(plan, workspace.runs / plan.run_id(), lambda _: None)


def _planned(workspace: Workspace, settings: ClientSettings, order: Order) -> Plan:
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
    return Plan(
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


def _train_what_is_missing(plan: Plan, run: Path, report: Report) -> None:
    if read_record(run) is None or not (plan.sharing.folder(run) / GATES).is_file():
        _import_training()(plan, run, report)


def _result(run: Path, plan: Plan) -> Iterator[str]:
    record = read_record(run)
    if record is None:
        return
    yield f"How it went: {draw(run)}"
    if (privacy := record.privacy) is not None:
        yield (
            f"Every example that was trained on has the promise of epsilon {privacy.epsilon:g}, delta "
            f"{privacy.delta:g}. The losses below are for you alone: the bundle does not tell them."
        )
    losses = record.losses
    yield "Loss on held-out rows: " + ", ".join(f"{loss:.3f} {LOSSES[name]}" for name, loss in losses.items()) + "."
    if plan.adapter is not None:
        named = plan.adapter.base_name or "no base model"
        yield (
            f"The adapter names {named}, the pool {plan.pool.spec.base.name}; a name proves nothing, and an adapter "
            "holds no other proof of the weights that it was trained on."
        )
    if losses["joint" if plan.joint else "gates"] >= losses["base"]:
        yield "On these rows the expert does not help: perhaps it belongs to other rows, or to another base model."


def _import_training() -> Callable[[Plan, Path, Report], None]:
    # Importing torch, peft and datasets makes millions of objects and no garbage: without the
    # collector it takes 5.3 instead of 6.8 s of CPU, and no later collection walks over them.
    gc.disable()
    try:
        from client.training.pipeline import train  # noqa: PLC0415 - seconds that no other verb should pay
    finally:
        gc.freeze()
        gc.enable()
    return train


def override(recipe: Recipe, overrides: Mapping[str, object]) -> Recipe:
    """Replace fields of a recipe.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the flag.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Recipe.model_validate({**recipe.model_dump(), **given})
    except ValidationError as error:
        name, reason = first_fault(error)
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


def _check_privacy(order: Order, recipe: Recipe) -> None:
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


def _check_budget(order: Order, workspace: Workspace) -> None:
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


def _packed(
    workspace: Workspace,
    settings: ClientSettings,
    run: Path,
    plan: Plan,
    identity: Identity,
    now: datetime,
) -> Bundle:
    """Pack a run, unless the very same expert lies packed already: a rerun changes nothing."""
    name, pool = plan.name, plan.pool
    folder = workspace.bundles / name
    records, shared = outbox.load(workspace.outbox), plan.sharing.folder(run)
    earlier: Bundle | None = None
    if (folder / ENVELOPE).is_file():
        try:
            earlier = open_bundle(folder)
        except Refused:
            earlier = None  # damaged on disk; packed anew
    supersedes = outbox.predecessor(records, name)
    if earlier is not None and _holds(earlier, run, shared):
        same = outbox.predecessor(records, name, but=earlier.digest)
        facts = (earlier.spec.supersedes, earlier.spec.license, earlier.spec.contributor, earlier.spec.pool)
        if facts == (same, settings.license, identity.public.hex, pool.digest):
            return earlier
    return pack.pack_run(
        run, shared, workspace.bundles, pool, identity, license_id=settings.license, supersedes=supersedes, now=now
    )


def _holds(bundle: Bundle, run: Path, shared: Path) -> bool:
    files = {ADAPTER_WEIGHTS: run / ADAPTER / ADAPTER_WEIGHTS, GATES: shared / GATES}
    return all(bundle.manifest.files[name].sha256 == sha256_of(path) for name, path in files.items())
