"""From a finished run to a signed bundle. Knows weights and facts, never an example."""

import shutil
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from client.bundle.card import render_card
from client.runs.record import ADAPTER, read_record, read_statistics
from protocol import bundle
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES, Bundle
from protocol.compatibility import check_tensors
from protocol.documents import Pool, timestamp
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import ExpertSpec


def pack_run(
    run: Path,
    shared: Path,
    bundles: Path,
    pool: Pool,
    identity: Identity,
    *,
    license_id: str,
    supersedes: str | None,
    now: datetime,
) -> Bundle:
    """Write and sign a bundle; it appears whole under its expert's name.

    Args:
        run: Folder of a finished run.
        shared: Folder with its gates and what is shared with them.
        bundles: Folder of all bundles.
        pool: The pool it is for.
        identity: Who signs.
        license_id: License of the expert.
        supersedes: Digest of this contributor's bundle of the same name that it replaces.
        now: Time of signing.

    Raises:
        Refused: `NOT_TRAINED`, `WRONG_POOL`, or a tensor's code if the run's files are damaged.
    """
    record = read_record(run)
    if record is None:
        raise Refused(Code.NOT_TRAINED, f"The run {run.name} is not finished.", "Run greylag-client train again.")
    if record.pool != pool.digest:
        raise Refused(Code.WRONG_POOL, "The expert was trained for another pool.", "Run greylag-client train again.")
    statistics = read_statistics(shared)
    spec = ExpertSpec(
        name=record.name,
        pool=pool.digest,
        base=pool.spec.base,
        contributor=identity.public.hex,
        modules=record.modules,
        dtype=record.dtype,
        joint=record.joint,
        privacy=record.privacy,
        statistics=statistics,
        license=license_id,
        supersedes=supersedes,
        created=timestamp(now),
        tool=f"greylag-client {tool_version()}",
    )
    partial = bundles / f".{record.name}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for source in (run / ADAPTER / ADAPTER_CONFIG, run / ADAPTER / ADAPTER_WEIGHTS, shared / GATES):
            shutil.copyfile(source, partial / source.name)
        (partial / CARD).write_text(render_card(record, pool, license_id, statistics), encoding="utf-8")
        packed = bundle.pack(partial, spec, identity)
        check_tensors(packed)
        _put(partial, bundles / record.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle(bundles / record.name, packed.manifest)


def _put(partial: Path, folder: Path) -> None:
    """Rename a finished folder into its place, over an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def tool_version() -> str:
    """Version of the installed package; 0 from a source tree that was never installed."""
    try:
        return version("greylag")
    except PackageNotFoundError:
        return "0"
