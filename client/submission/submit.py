"""Behind the verbs `submit`, `status` and `verify`: what would leave, what left, and what became of it."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from client.progress import Report
from client.submission import outbox, upload
from client.submission.enrolment import enrol, enrolled
from client.workspace import keys
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol import tensors
from protocol.bundle import ADAPTER_WEIGHTS, CARD, ENVELOPE, GATES, Bundle, open_bundle
from protocol.compatibility import check_tensors
from protocol.documents import Pool
from protocol.errors import Code, Refused, Unavailable
from protocol.files.atomic import write_whole
from protocol.signing import Signed
from protocol.v1.intake_pb2 import StatusReply
from protocol.wire.grpc_status import plain

FINAL = ("refused", "released", "superseded", "yanked")
WAITS_FOR_OPERATOR = "quarantined"


def choose(workspace: ClientWorkspace, given: Path | None) -> Bundle:
    """Open the bundle to work on: the one given, or the only one of the workspace.

    Raises:
        Refused: `NOT_TRAINED`, or a code of a damaged bundle.
    """
    if given is not None:
        named = workspace.bundles / given
        folder = named if len(given.parts) == 1 and named.is_dir() else given
    else:
        found = sorted(path.parent for path in workspace.bundles.glob(f"[!.]*/{ENVELOPE}"))
        if not found:
            raise Refused(
                Code.NOT_TRAINED,
                f"{workspace.root.resolve()} holds no finished bundle.",
                "Make one with: greylag-client train --data FILE",
            )
        if len(found) > 1:
            raise Refused(
                Code.NOT_TRAINED,
                f"There are {len(found)} bundles here: {', '.join(path.name for path in found)[:200]}.",
                "Name one: greylag-client submit NAME",
            )
        folder = found[0]
    return verify(folder)


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
    return {
        "digest": bundle.digest,
        "name": spec.name,
        "contributor": spec.contributor,
        "pool": spec.pool,
        "base": spec.base.name,
        "modules": len(spec.modules),
        "ranks": sorted({module.rank for module in spec.modules.values()}),
        "license": spec.license,
        "supersedes": spec.supersedes,
        "created": spec.created,
        "bytes": bundle.manifest.total_bytes,
    }


def leaving(bundle: Bundle, enrolment: bytes) -> dict[str, Any]:
    """List everything that a submission sends, and nothing else.

    Args:
        bundle: The bundle.
        enrolment: The key's introduction, which is sent first.
    """
    manifest = bundle.manifest
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
        "card": _told_by((bundle.folder / CARD).read_text(encoding="utf-8")),
        "statement": json.loads(Signed.parse(manifest.envelope).payload),
        "enrolment": json.loads(Signed.parse(enrolment).payload),
    }


def _told_by(card: str) -> dict[str, str]:
    """Read the table of a model card."""
    return dict(re.findall(r"^\| ([^|]*[^|\s]) \| (.+) \|$", card, re.MULTILINE))


def enrolment_for(
    workspace: ClientWorkspace, settings: ClientSettings, bundle: Bundle, pool: Pool, now: datetime, *, keep: bool
) -> bytes:
    """Return the introduction of the bundle's key; the private key is needed only if the name changed.

    Raises:
        Refused: `WRONG_POOL`, `SIGNER_MISMATCH`, or a code of the key.
    """
    if bundle.spec.pool != pool.digest:
        raise Refused(
            Code.WRONG_POOL,
            f"The bundle {bundle.spec.name} was made for another pool than this workspace's.",
            "Train it again here.",
        )
    stored = enrolled(workspace, pool, settings.name, bundle.manifest.signer)
    if stored is not None:
        return stored
    identity = keys.load(workspace.root / settings.key)
    if identity.public != bundle.manifest.signer:
        raise Refused(
            Code.SIGNER_MISMATCH,
            f"The bundle {bundle.spec.name} was signed by another key than this workspace's.",
            "Submit it from the workspace that made it, or train it again here.",
        )
    envelope = enrol(pool, settings.name, identity, now)
    if keep:
        write_whole(workspace.enrolment_file, envelope)
    return envelope


def send(
    workspace: ClientWorkspace,
    bundle: Bundle,
    enrolment: bytes,
    pool: Pool,
    coordinator: upload.Coordinator,
    report: Report,
) -> outbox.Record:
    """Submit a bundle and keep its receipt.

    Raises:
        Refused: What the coordinator refuses with.
        Unavailable: `UNREACHABLE`, `BUSY` or `STORAGE_FULL`.
    """
    receipt, envelope = upload.submit(bundle, enrolment, pool, coordinator, report)
    known = {record.digest: record for record in outbox.load(workspace.outbox)}
    if bundle.digest in known:
        return known[bundle.digest]
    record = outbox.submitted(bundle.spec.name, receipt, envelope)
    outbox.save(workspace.outbox, record)
    return record


def refresh(
    workspace: ClientWorkspace, record: outbox.Record, pool: Pool, coordinator: upload.Coordinator, *, wait: bool
) -> outbox.Record:
    """Ask what became of a bundle and keep the answer.

    Args:
        workspace: Where the record is kept.
        record: The bundle's record.
        pool: Its policy says whether a person decides.
        coordinator: Whom to ask.
        wait: Ask again until it is decided, at most its `give_up_after_s` seconds.

    Raises:
        Refused: `BUNDLE_UNKNOWN`.
        Unavailable: `UNREACHABLE` or `BUSY`.
    """
    if wait:
        reply: StatusReply = upload.wait(record.digest, coordinator, lambda state: decided(state, pool))
    else:
        reply = upload.status(record.digest, coordinator)
    heard = record.model_copy(
        update={
            "state": plain(reply.state),
            "code": plain(reply.code),
            "message": plain(reply.message),
            "hint": plain(reply.hint),
            "release": reply.release,
        }
    )
    outbox.save(workspace.outbox, heard)
    return heard


def decided(state: str, pool: Pool) -> bool:
    """Tell whether a bundle in this state waits for nobody, or for a person, as the pool's policy may want it."""
    by_people = pool.spec.policy.admission == "reviewed"
    return state in FINAL or (by_people and state == WAITS_FOR_OPERATOR)


def check_decided(record: outbox.Record, pool: Pool) -> None:
    """Fail if waiting has ended and nobody has decided about a bundle.

    Raises:
        Unavailable: `BUSY`.
    """
    if not decided(record.state, pool):
        raise Unavailable(
            Code.BUSY,
            f"The coordinator keeps {record.name}, but nobody there has decided about it: it is {record.state}.",
            "Ask its operator whether greylag-coordinator worker runs, then: greylag-client status --wait",
        )
