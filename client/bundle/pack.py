"""From a finished run to a signed bundle. Knows weights and facts, never an example."""

import shutil
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from client.bundle.card import render_card
from client.runs.record import ADAPTER, RunRecord, read_statistics
from client.workspace.paths import ClientWorkspace
from protocol import adapter_config, bundle
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES, Bundle
from protocol.compatibility import check_tensors
from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import ExpertSpec


def pack_run(
    workspace: ClientWorkspace,
    record: RunRecord,
    run: Path,
    shared: Path,
    identity: Identity,
    *,
    supersedes: str | None,
    now: datetime,
) -> Bundle:
    """Write and sign a bundle of a finished run, with what is shared; it appears whole under its expert's name.

    Raises:
        Refused: `WRONG_POOL`, or a tensor's code if the run's files are damaged.
    """
    pool, license_id = workspace.pool, workspace.settings.license
    if record.pool != pool.digest:
        raise Refused(Code.WRONG_POOL, "The expert was trained for another pool.", "Run greylag-client train again.")
    statistics, folder = read_statistics(shared), workspace.bundles / record.name
    spec = ExpertSpec(
        name=record.name, pool=pool.digest, base=pool.spec.base, contributor=identity.public.hex,
        modules=record.modules, dtype=record.dtype, joint=record.joint, privacy=record.privacy, statistics=statistics,
        license=license_id, supersedes=supersedes, created=timestamp(now), tool=f"greylag-client {tool_version()}",
    )  # fmt: skip
    partial, old = folder.with_name(f".{record.name}.tmp"), folder.with_name(f".{record.name}.old")
    if old.exists() and not folder.exists():  # a kill came between the two renames below
        old.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for source in (run / ADAPTER / ADAPTER_WEIGHTS, shared / GATES):
            shutil.copyfile(source, partial / source.name)
        (partial / ADAPTER_CONFIG).write_bytes(adapter_config.render(spec, pool.spec))
        (partial / CARD).write_text(render_card(record, pool, license_id, statistics), encoding="utf-8")
        packed = bundle.pack(partial, spec, identity)
        check_tensors(packed)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle(folder, packed.manifest)


def tool_version() -> str:
    """Version of the installed package; 0 from a source tree that was never installed."""
    try:
        return version("greylag")
    except PackageNotFoundError:
        return "0"
