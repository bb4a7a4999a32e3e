"""From a workspace and private files to a signed bundle, and from an earlier run to its bundle again."""

import gc
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from client.bundle import pack
from client.progress import Report
from client.runs.plot import draw
from client.runs.record import ADAPTER, LOSSES, RunRecord, finished, read_record, where_stopped
from client.submission import outbox
from client.training.plan import TrainingPlan, check_budget, make_plan
from client.training.request import TrainingRequest
from client.workspace import keys
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.bundle import ADAPTER_WEIGHTS, ENVELOPE, GATES, Bundle, Manifest, open_bundle, read_manifest, sha256_of
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.signing import Identity
from router.base.fingerprint import check_base

_PACKED = "packed"
"""Folder of a run with the envelopes of the bundles that were made of it."""


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
        Unavailable: `INTERRUPTED`.
    """
    plan = make_plan(workspace, settings, request)
    identity = keys.load(workspace.root / settings.key)
    check_base(settings.base, plan.pool.spec.base, workspace.base_cache)
    run = workspace.runs / plan.run_id()
    if read_record(run) is None:
        check_budget(request, (record for _, record in finished(workspace.runs)))
        if stopped := where_stopped(run):
            say(f"Continuing a training that was stopped after {stopped}.")
    _train_what_is_missing(plan, run, report)
    for sentence in _result(run, plan):
        say(sentence)
    bundle = _pack(workspace, settings, run, plan.sharing.folder(run), plan.pool, identity, now)
    for sentence in _compared(workspace, run, bundle):
        say(sentence)
    return bundle


def assist(workspace: ClientWorkspace, settings: ClientSettings, request: TrainingRequest) -> None:
    """Train with a process that packs what comes out (`client.training.distributed`).

    Raises:
        Refused: As `produce`.
    """
    plan = make_plan(workspace, settings, request)
    _train_what_is_missing(plan, workspace.runs / plan.run_id(), lambda _: None)


def made(workspace: ClientWorkspace) -> list[tuple[Manifest, Path, RunRecord]]:
    """List all bundles that were made here, each with its run, oldest first."""
    found = [
        (read_manifest(path.read_bytes()), run, record)
        for run, record in finished(workspace.runs)
        for path in run.glob(f"{_PACKED}/*.json")  # not what a kill left beside them
    ]
    return sorted(found, key=lambda entry: (entry[0].spec.created, entry[0].digest))


def bring_back(workspace: ClientWorkspace, settings: ClientSettings, digest: str, now: datetime) -> Bundle:
    """Pack an earlier expert anew, as the one that takes the place of what was submitted last under its name.

    Args:
        workspace: Locked by the caller.
        settings: Its settings.
        digest: Of a bundle that was made here, or how it begins.
        now: Time of signing.

    Raises:
        Refused: `BUNDLE_UNKNOWN`, or as `client.bundle.pack.pack_run`.
    """
    found = [(manifest, run) for manifest, run, _ in made(workspace) if manifest.digest.startswith(digest)]
    if len(found) != 1:
        raise Refused(
            Code.BUNDLE_UNKNOWN,
            f"{len(found)} bundles that were made here have a digest that begins with {digest!r:.80}.",
            "Give one that this lists: greylag-client history",
        )
    ((manifest, run),) = found
    gates = manifest.files[GATES].sha256
    shared = next(path.parent for path in run.rglob(GATES) if sha256_of(path) == gates)
    identity = keys.load(workspace.root / settings.key)
    return _pack(workspace, settings, run, shared, workspace.pool(settings.pool_key), identity, now)


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
    if record.loss >= losses["base"]:
        yield "On these rows the expert does not help: perhaps it belongs to other rows, or to another base model."


def _compared(workspace: ClientWorkspace, run: Path, bundle: Bundle) -> Iterator[str]:
    """Say if an expert is worse than the one whose place it takes."""
    earlier = next((record for each, _, record in made(workspace) if each.digest == bundle.spec.supersedes), None)
    record = read_record(run)
    if earlier is not None and record is not None and earlier.loss < record.loss:
        yield (
            f"Its loss on held-out rows is {record.loss:.3f}; it takes the place of one with {earlier.loss:.3f}. "
            "Earlier experts are listed, and brought back, by: greylag-client history"
        )


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


def _pack(
    workspace: ClientWorkspace,
    settings: ClientSettings,
    run: Path,
    shared: Path,
    pool: Pool,
    identity: Identity,
    now: datetime,
) -> Bundle:
    """Pack a run, unless the very same expert lies packed already: a rerun changes nothing."""
    record = read_record(run)
    name = "" if record is None else record.name
    records = outbox.load(workspace.outbox)
    earlier = _packed_already(workspace.bundles / name, run, shared)
    supersedes = outbox.predecessor(records, name)
    if earlier is not None:
        facts = (earlier.spec.license, earlier.spec.contributor, earlier.spec.pool)
        in_place = supersedes in (earlier.digest, earlier.spec.supersedes)  # it holds its name, or may still take it
        if in_place and facts == (settings.license, identity.public.hex, pool.digest):
            return earlier
    bundle = pack.pack_run(
        run, shared, workspace.bundles, pool, identity, license_id=settings.license, supersedes=supersedes, now=now
    )
    write_whole(run / _PACKED / f"{bundle.digest}.json", bundle.manifest.envelope)
    return bundle


def _packed_already(folder: Path, run: Path, shared: Path) -> Bundle | None:
    """Open the bundle that lies in a folder if it holds the tensors of a run; one that is damaged is packed anew."""
    try:
        manifest = read_manifest((folder / ENVELOPE).read_bytes())
        files = {ADAPTER_WEIGHTS: run / ADAPTER / ADAPTER_WEIGHTS, GATES: shared / GATES}
        if any(manifest.files[name].sha256 != sha256_of(path) for name, path in files.items()):
            return None
        return open_bundle(folder)
    except (OSError, Refused):
        return None
