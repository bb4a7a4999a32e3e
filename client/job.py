"""From a workspace and private files to a signed bundle, and from an earlier run to its bundle again."""

import gc
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from client.bundle import pack
from client.data.columns import SEEN
from client.progress import Report
from client.runs.plot import draw
from client.runs.record import ADAPTER, RunRecord, finished, is_finished, read_record, where_stopped
from client.submission import outbox
from client.training.plan import TrainingPlan, TrainingRequest, check_budget, make_plan
from client.workspace.paths import ClientWorkspace
from protocol.bundle import ADAPTER_WEIGHTS, ENVELOPE, GATES, Bundle, Manifest, open_bundle, read_manifest, sha256_of
from protocol.compatibility import check_derived
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.signing import Identity
from router.base.fingerprint import check_base

_PACKED = "packed"
"""Folder of a run with the envelopes of the bundles that were made of it."""


def produce(
    workspace: ClientWorkspace,
    request: TrainingRequest,
    report: Report,
    now: datetime,
    say: Callable[[str], object] | None = None,
) -> Bundle:
    """Train and pack one expert, or the gates of one; the caller holds the workspace's lock.

    All that is cheap to check is checked before the slow part.

    Args:
        workspace: Where runs and bundles are kept.
        request: What is trained, on what.
        report: Is told how far it is.
        now: The time of packing.
        say: Is told in sentences what came of it; nobody to tell, and no picture is drawn.

    Raises:
        Refused: A code of the data, the base, the key, the recipe or the adapter, or `BUDGET_EXHAUSTED`.
        Unavailable: `INTERRUPTED`.
    """
    plan, identity = make_plan(workspace, request), workspace.identity()
    check_base(workspace.settings.base, workspace.pool.spec.base, workspace.base_cache)
    run = workspace.runs / plan.run_id()
    if not is_finished(run):
        check_budget(request, (record for _, record in finished(workspace.runs)))
        if say and (stopped := where_stopped(run)):
            say(f"Continuing a training that was stopped after {stopped}.")
    _train_what_is_missing(plan, run, report)
    record = read_record(run)
    if say:
        say(f"How it went: {draw(run)}")
        for sentence in _result(record, plan):
            say(sentence)
    bundle = _pack(workspace, record, run, plan.sharing.folder(run), identity, now)
    earlier = next((each for manifest, _, each in made(workspace) if manifest.digest == bundle.spec.supersedes), None)
    if say and earlier is not None and earlier.loss < record.loss:
        say(
            f"Its loss on held-out rows is {record.loss:.3f}; it takes the place of one with {earlier.loss:.3f}. "
            "Earlier experts are listed, and brought back, by: greylag-client history"
        )
    return bundle


def assist(workspace: ClientWorkspace, request: TrainingRequest) -> None:
    """Train with a process that packs what comes out (`client.training.distributed`).

    Raises:
        Refused: As `produce`.
    """
    plan = make_plan(workspace, request)
    _train_what_is_missing(plan, workspace.runs / plan.run_id(), lambda _: None)


def made(workspace: ClientWorkspace) -> list[tuple[Manifest, Path, RunRecord]]:
    """List all bundles that were made here, each with its run, oldest first."""
    found = [
        (read_manifest(path.read_bytes()), run, record)
        for run, record in finished(workspace.runs)
        for path in run.glob(f"{_PACKED}/*.json")  # not what a kill left beside them
    ]
    return sorted(found, key=lambda entry: (entry[0].spec.created, entry[0].digest))


def bring_back(workspace: ClientWorkspace, digest: str, now: datetime) -> Bundle:
    """Pack anew the expert whose digest begins so, in the place of what was submitted last under its name.

    Raises:
        Refused: `BUNDLE_UNKNOWN`, or as `client.bundle.pack.pack_run`.
    """
    found = [entry for entry in made(workspace) if entry[0].digest.startswith(digest)]
    if len(found) != 1:
        raise Refused(
            Code.BUNDLE_UNKNOWN,
            f"{len(found)} bundles that were made here have a digest that begins with {digest!r:.80}.",
            "Give one that this lists: greylag-client history",
        )
    ((manifest, run, record),) = found
    return _pack(workspace, record, run, _shared(run, manifest), workspace.identity(), now)


def sign_again(workspace: ClientWorkspace, identity: Identity, now: datetime) -> list[Bundle]:
    """Pack those bundles anew that lie here, were not submitted, and were signed by another key.

    Raises:
        Refused: As `client.bundle.pack.pack_run`.
    """
    sent = {record.digest for record in outbox.load(workspace.outbox)}
    again = []
    for manifest, run, record in made(workspace):
        envelope = workspace.bundles / record.name / ENVELOPE
        lies_here = envelope.is_file() and envelope.read_bytes() == manifest.envelope
        if lies_here and manifest.digest not in sent and manifest.signer != identity.public:
            again.append(_pack(workspace, record, run, _shared(run, manifest), identity, now))
    return again


def _shared(run: Path, manifest: Manifest) -> Path:
    """Find what a bundle of a run shares, by its gates."""
    return next(path.parent for path in run.rglob(GATES) if sha256_of(path) == manifest.files[GATES].sha256)


def _train_what_is_missing(plan: TrainingPlan, run: Path, report: Report) -> None:
    parts = plan.sharing.folder(run) / GATES, run / SEEN  # an older version did not note what it saw
    if not (is_finished(run) and all(part.is_file() for part in parts)):
        _import_training()(plan, run, report)


def _result(record: RunRecord, plan: TrainingPlan) -> Iterator[str]:
    if (privacy := record.privacy) is not None:
        yield (
            f"Every example that was trained on has the promise of epsilon {privacy.epsilon:g}, delta "
            f"{privacy.delta:g}. The losses below are for you alone: the bundle does not tell them."
        )
    yield f"Loss on held-out rows: {record.told_losses()}."
    if plan.adapter is not None:
        named, pool = plan.adapter.base_name or "no base model", plan.workspace.pool.spec.base.name
        yield (
            f"The adapter names {named}, the pool {pool}; a name proves nothing, and an adapter "
            "holds no other proof of the weights that it was trained on."
        )
    if record.loss >= record.losses["base"]:
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


def _pack(
    workspace: ClientWorkspace, record: RunRecord, run: Path, shared: Path, identity: Identity, now: datetime
) -> Bundle:
    """Pack a run, unless the very same expert lies packed already: a rerun changes nothing."""
    supersedes = outbox.predecessor(outbox.load(workspace.outbox), record.name)
    if (earlier := _packed_already(workspace, record.name, run, shared)) is not None:
        facts = (earlier.spec.license, earlier.spec.contributor, earlier.spec.pool)
        in_place = supersedes in (earlier.digest, earlier.spec.supersedes)  # it holds its name, or may still take it
        if in_place and facts == (workspace.settings.license, identity.public.hex, workspace.pool.digest):
            return earlier
    bundle = pack.pack_run(workspace, record, run, shared, identity, supersedes=supersedes, now=now)
    write_whole(run / _PACKED / f"{bundle.digest}.json", bundle.manifest.envelope)
    return bundle


def _packed_already(workspace: ClientWorkspace, name: str, run: Path, shared: Path) -> Bundle | None:
    """Open the bundle of a name if it holds a run's tensors; a damaged or outdated one is packed anew."""
    folder = workspace.bundles / name
    try:
        manifest = read_manifest((folder / ENVELOPE).read_bytes())
        files = {ADAPTER_WEIGHTS: run / ADAPTER / ADAPTER_WEIGHTS, GATES: shared / GATES}
        if any(manifest.files[name].sha256 != sha256_of(path) for name, path in files.items()):
            return None
        check_derived(manifest, workspace.pool)
        return open_bundle(folder)
    except (OSError, Refused):
        return None
