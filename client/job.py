"""The verb `train`: from a workspace and a data file to a signed bundle."""

import gc
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from client.bundle import pack
from client.progress import Report
from client.runs.plot import draw
from client.runs.record import ADAPTER, LOSSES, finished, read_record
from client.submission import outbox
from client.training.plan import TrainingPlan, check_budget, make_plan
from client.training.request import TrainingRequest
from client.workspace import keys
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.bundle import ADAPTER_WEIGHTS, ENVELOPE, GATES, Bundle, open_bundle, sha256_of
from protocol.errors import Refused
from protocol.signing import Identity
from router.base.fingerprint import check_base


def produce(
    workspace: ClientWorkspace,
    settings: ClientSettings,
    request: TrainingRequest,
    report: Report,
    now: datetime,
    say: Callable[[str], object] = str,
) -> Bundle:
    """Train and pack one expert, or the gates of one; all that is cheap to check is checked before the slow part.

    Args:
        workspace: Locked by the caller.
        settings: Its settings.
        request: What to train.
        report: Told after every step.
        now: Time of signing.
        say: Told in sentences what came of it.

    Raises:
        Refused: A code of the data, the base, the key, the recipe or the adapter, or `BUDGET_EXHAUSTED`.
    """
    plan = make_plan(workspace, settings, request)
    identity = keys.load(workspace.root / settings.key)
    check_base(settings.base, plan.pool.spec.base, workspace.base_cache)
    run = workspace.runs / plan.run_id()
    if read_record(run) is None:
        check_budget(request, (record for _, record in finished(workspace.runs)))
    _train_what_is_missing(plan, run, report)
    for sentence in _result(run, plan):
        say(sentence)
    return _packed(workspace, settings, run, plan, identity, now)


def assist(workspace: ClientWorkspace, settings: ClientSettings, request: TrainingRequest) -> None:
    """Train with a process that packs what comes out (`client.training.distributed`).

    Raises:
        Refused: As `produce`.
    """
    plan = make_plan(workspace, settings, request)
    _train_what_is_missing(plan, workspace.runs / plan.run_id(), lambda _: None)


def _train_what_is_missing(plan: TrainingPlan, run: Path, report: Report) -> None:
    if read_record(run) is None or not (plan.sharing.folder(run) / GATES).is_file():
        _import_training()(plan, run, report)


def _result(run: Path, plan: TrainingPlan) -> Iterator[str]:
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
    if losses["joint" if record.joint else "gates"] >= losses["base"]:
        yield "On these rows the expert does not help: perhaps it belongs to other rows, or to another base model."


def _import_training() -> Callable[[TrainingPlan, Path, Report], None]:
    # Importing torch, peft and datasets makes millions of objects and no garbage: without the
    # collector it takes 5.3 instead of 6.8 s of CPU, and no later collection walks over them.
    gc.disable()
    try:
        from client.training.pipeline import train  # noqa: PLC0415 - seconds that no other verb should pay
    finally:
        gc.freeze()
        gc.enable()
    return train


def _packed(
    workspace: ClientWorkspace,
    settings: ClientSettings,
    run: Path,
    plan: TrainingPlan,
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
