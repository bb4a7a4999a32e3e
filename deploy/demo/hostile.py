"""Four submissions that must not get in, by somebody who does not use our client's checks."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from client.submission import upload
from client.submission.enrolment import enrol
from deploy.demo.federation import Federation
from protocol.bundle import ADAPTER_WEIGHTS, ENVELOPE, Bundle, open_bundle, pack
from protocol.documents import read_pool
from protocol.errors import Code, GreylagError, Refused
from protocol.files import strict_json
from protocol.signing import Identity, Signed
from protocol.v1 import intake_pb2
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire.chunks import read_chunks
from protocol.wire.grpc_client import DEADLINE_S, connect

NAME = "mallory"
VERDICT_S = 60.0
"""How long to wait for the worker's verdict, in seconds."""


def attempt_all(cast: Federation, victim: str, folder: Path) -> dict[str, GreylagError]:
    """Try the four attacks with a stolen copy of a contributor's bundle.

    Args:
        cast: The running federation.
        victim: Whose bundle was stolen.
        folder: Scratch space.

    Returns:
        How each was refused.

    Raises:
        RuntimeError: An attack got in.
    """
    stolen, mallory = open_bundle(cast.place(victim) / "bundles" / victim), Identity.generate()
    coordinator = upload.Coordinator(cast.coordinator, give_up_after_s=VERDICT_S)
    enrolment = enrol(read_pool(upload.fetch_pool(coordinator)), NAME, mallory, datetime.now(UTC))
    with connect(cast.coordinator) as channel:
        IntakeStub(channel).Enrol(intake_pb2.EnrolRequest(envelope=enrolment), timeout=DEADLINE_S)
    refusals: dict[str, GreylagError] = {}
    for case, prepare in CASES.items():
        place = folder / case.replace(" ", "-")
        shutil.copytree(stolen.folder, place)
        (place / ENVELOPE).unlink()
        try:
            _submit(coordinator, prepare(place, stolen, mallory), place)
        except GreylagError as refused:
            refusals[case] = refused
        else:
            raise RuntimeError(f"{case} got in")
    return refusals


def _flipped_byte(place: Path, stolen: Bundle, mallory: Identity) -> bytes:
    """Sign one thing and send another: one bit of one weight differs."""
    envelope = _repack(place, stolen, mallory)
    weights = bytearray((place / ADAPTER_WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (place / ADAPTER_WEIGHTS).write_bytes(weights)
    return envelope


def _nan(place: Path, stolen: Bundle, mallory: Identity) -> bytes:
    """Sign weights of which one is not a number."""
    return _repack(place, stolen, mallory, weight=float("nan"))


def _other_signature(place: Path, stolen: Bundle, mallory: Identity) -> bytes:  # noqa: ARG001 - as the other cases
    """Claim the victim's bundle under a signature of one's own, with the victim's key id on it."""
    honest = Signed.parse(stolen.manifest.envelope)
    forged = strict_json.loads(mallory.sign(honest.payload), what="The forgery")
    forged["signatures"][0]["keyid"] = honest.keyids[0]
    return strict_json.dumps(forged)


def _other_base(place: Path, stolen: Bundle, mallory: Identity) -> bytes:
    """Submit an expert for a base model that the pool does not have."""
    base = stolen.spec.base.model_copy(update={"weights": "0" * 64, "name": "another-model"})
    return _repack(place, stolen, mallory, base=base)


CASES: dict[str, Callable[[Path, Bundle, Identity], bytes]] = {
    "a flipped byte": _flipped_byte,
    "a NaN": _nan,
    "someone else's signature": _other_signature,
    "another base model": _other_base,
}


def _repack(place: Path, stolen: Bundle, mallory: Identity, *, weight: float = 0.125, **changes: object) -> bytes:
    # A changed weight, so that the stolen bytes are not recognised as the victim's own.
    tensors = load_file(place / ADAPTER_WEIGHTS)
    np.put(next(iter(tensors.values())), 0, weight)
    save_file(tensors, place / ADAPTER_WEIGHTS, {"format": "pt"})
    mine = {"contributor": mallory.public.hex, "name": NAME, "supersedes": None}
    return pack(place, stolen.spec.model_copy(update=mine | changes), mallory).manifest.envelope


def _submit(coordinator: upload.Coordinator, envelope: bytes, place: Path) -> None:
    with connect(coordinator.address) as channel:
        intake = IntakeStub(channel)
        begun = intake.Begin(intake_pb2.BeginRequest(envelope=envelope), timeout=DEADLINE_S)
        for missing in begun.missing:
            intake.Put(_stream(begun.digest, begun.token, missing, place), timeout=DEADLINE_S)
        intake.Commit(intake_pb2.CommitRequest(digest=begun.digest, token=begun.token), timeout=DEADLINE_S)
    status = upload.wait(begun.digest, coordinator, {"refused", "accepted", "released"}.__contains__)
    if status.state == "refused":
        raise Refused(Code[status.code], status.message, status.hint)


def _stream(digest: str, token: bytes, missing: intake_pb2.MissingFile, place: Path) -> Iterator[intake_pb2.PutRequest]:
    yield intake_pb2.PutRequest(start=intake_pb2.PutStart(digest=digest, token=token, name=missing.name))
    for chunk in read_chunks(place / missing.name, missing.offset):
        yield intake_pb2.PutRequest(chunk=chunk)
