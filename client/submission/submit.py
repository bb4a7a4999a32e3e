"""Behind the verbs `submit`, `status` and `verify`: what would leave, what left, and what became of it."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from client.progress import Report
from client.submission import log, outbox, upload
from client.submission.join import enrol, enrolled
from client.workspace.paths import ClientWorkspace
from protocol import tensors
from protocol.bundle import ADAPTER_WEIGHTS, CARD, ENVELOPE, GATES, Bundle, open_bundle
from protocol.compatibility import check_tensors
from protocol.documents import Pool
from protocol.errors import Code, Refused, Unavailable
from protocol.files.atomic import write_whole
from protocol.signing import Signed
from protocol.wire.grpc_status import plain

FINAL = ("refused", "released", "superseded", "yanked")


def choose(workspace: ClientWorkspace, given: Path | None) -> Bundle:
    """Open the bundle to work on: the one given, or the only one of the workspace.

    Raises:
        Refused: `NOT_TRAINED`, or a code of a damaged bundle.
    """
    if given is not None:
        named = workspace.bundles / given
        return verify(named if len(given.parts) == 1 and named.is_dir() else given)
    found = sorted(path.parent for path in workspace.bundles.glob(f"[!.]*/{ENVELOPE}"))
    if len(found) == 1:
        return verify(found[0])
    if found:
        raise Refused(
            Code.NOT_TRAINED,
            f"There are {len(found)} bundles here: {', '.join(path.name for path in found)[:200]}.",
            "Name one: greylag-client submit NAME",
        )
    raise Refused(
        Code.NOT_TRAINED,
        f"{workspace.root.resolve()} holds no finished bundle.",
        "Make one with: greylag-client train --data FILE",
    )


def verify(folder: Path) -> Bundle:
    """Check a bundle as far as that goes offline: signature, bytes, spec and tensors.

    Raises:
        Refused: The first fault.
    """
    bundle = open_bundle(folder)
    check_tensors(bundle)
    return bundle


def facts(bundle: Bundle) -> dict[str, Any]:
    """List what a bundle is."""
    spec = bundle.spec
    told = spec.model_dump(include={"name", "contributor", "pool", "license", "supersedes", "created"})
    ranks = sorted({module.rank for module in spec.modules.values()})
    size = {"modules": len(spec.modules), "ranks": ranks, "bytes": bundle.manifest.total_bytes}
    return {"digest": bundle.digest, **told, "base": spec.base.name, **size}


def leaving(bundle: Bundle, enrolment: bytes) -> dict[str, Any]:
    """List everything that a submission sends, the key's introduction first, and nothing else."""
    manifest = bundle.manifest
    card = (bundle.folder / CARD).read_text(encoding="utf-8")
    held = {name: tensors.read_header(bundle.folder / name) for name in (ADAPTER_WEIGHTS, GATES)}
    return {
        "digest": bundle.digest,
        "files": [
            {"name": name, "bytes": file.size, "sha256": file.sha256} for name, file in sorted(manifest.files.items())
        ],
        "tensors": [
            {"file": name, "name": tensor, "shape": list(info.shape), "dtype": info.dtype}
            for name, header in held.items()
            for tensor, info in sorted(header.items())
        ],
        # The table of the model card.
        "card": dict(re.findall(r"^\| ([^|]*[^|\s]) \| (.+) \|$", card, re.MULTILINE)),
        "statement": json.loads(Signed.parse(manifest.envelope).payload),
        "enrolment": json.loads(Signed.parse(enrolment).payload),
    }


def enrolment_for(workspace: ClientWorkspace, bundle: Bundle, now: datetime, *, keep: bool) -> bytes:
    """Return the introduction of the bundle's key; the private key is needed only if the name changed.

    Raises:
        Refused: `WRONG_POOL`, `SIGNER_MISMATCH`, or a code of the key.
    """
    if bundle.spec.pool != workspace.pool.digest:
        raise Refused(
            Code.WRONG_POOL,
            f"The bundle {bundle.spec.name} was made for another pool than this workspace's.",
            "Train it again here.",
        )
    if (stored := enrolled(workspace, bundle.manifest.signer)) is not None:
        return stored
    identity = workspace.identity()
    if identity.public != bundle.manifest.signer:
        raise Refused(
            Code.SIGNER_MISMATCH,
            f"The bundle {bundle.spec.name} was signed by another key than this workspace's.",
            "Submit it from the workspace that made it, or train it again here.",
        )
    envelope = enrol(workspace.pool, workspace.settings.name, identity, now)
    if keep:
        write_whole(workspace.enrolment_file, envelope)
    return envelope


def send(
    workspace: ClientWorkspace, bundle: Bundle, enrolment: bytes, coordinator: upload.Coordinator, report: Report
) -> outbox.Record:
    """Submit a bundle, keep its receipt, and then the proof that it is in the pool's log.

    Raises:
        Refused: What the coordinator refuses with, or as `protocol.log.reader.LogReader`.
        Unavailable: `UNREACHABLE`, `BUSY` or `STORAGE_FULL`.
    """
    receipt, envelope = upload.submit(bundle, enrolment, workspace.keep_up, coordinator, report)
    known = {record.digest: record for record in outbox.load(workspace.outbox)}
    if bundle.digest not in known:
        known[bundle.digest] = outbox.submitted(bundle.spec.name, receipt, envelope)
        outbox.save(workspace.outbox, known[bundle.digest])
    try:
        return log.prove(workspace, known[bundle.digest])
    except Unavailable as error:  # the bundle is kept, and that is what was asked for
        coordinator.say(f"The pool's log was not asked: {error.message} Ask it later with: greylag-client verify")
        return known[bundle.digest]


def refresh(
    workspace: ClientWorkspace, record: outbox.Record, coordinator: upload.Coordinator, *, wait: bool
) -> outbox.Record:
    """Ask what became of a bundle, or wait until it is decided, for as long as patience lasts, and keep the answer.

    Raises:
        Refused: `BUNDLE_UNKNOWN`.
        Unavailable: `UNREACHABLE` or `BUSY`.
    """
    if wait:
        reply = upload.wait(record.digest, coordinator, lambda reply: decided(reply.state, reply.code, workspace.pool))
    else:
        reply = upload.status(record.digest, coordinator)
    words = {name: plain(getattr(reply, name)) for name in ("state", "code", "message", "hint")}
    heard = record.model_copy(update={**words, "release": reply.release})
    outbox.save(workspace.outbox, heard)
    return heard


def decided(state: str, code: str, pool: Pool) -> bool:
    """Tell whether a bundle waits for nobody, or for a person, as the policy or the worker's doubts may want it."""
    by_people = pool.spec.policy.admission == "reviewed" or bool(code)
    return state in FINAL or (by_people and state == "quarantined")


def check_decided(record: outbox.Record, pool: Pool) -> None:
    """Fail if waiting has ended and nobody has decided about a bundle (`BUSY`)."""
    if not decided(record.state, record.code, pool):
        raise Unavailable(
            Code.BUSY,
            f"The coordinator keeps {record.name}, but nobody there has decided about it: it is {record.state}.",
            "Ask its operator whether greylag-coordinator worker runs, then: greylag-client status --wait",
        )
