"""Four submissions that must not get in, by somebody who does not use our client's checks."""

import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploy.demo.federation import Federation
from protocol.bundle import ADAPTER_WEIGHTS, ENVELOPE, Bundle, Manifest, open_bundle, pack
from protocol.documents import ENROLMENT_TYPE, Enrolment, sign, timestamp
from protocol.errors import Code, GreylagError, Refused
from protocol.files import strict_json
from protocol.signing import Identity, Signed
from protocol.tensors import adapter_tensors
from protocol.v1 import intake_pb2
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire.chunks import read_chunks
from protocol.wire.grpc_client import DEADLINE_S, connect

NAME = "mallory"
VERDICT_S = 60.0
"""How long to wait for the worker's verdict, in seconds."""


@dataclass(frozen=True)
class Refusal:
    """What became of one attempt."""

    case: str
    code: str
    message: str


def attempt_all(cast: Federation, victim: str, folder: Path) -> list[Refusal]:
    """Try the four attacks with a stolen copy of a contributor's bundle.

    Args:
        cast: The running federation.
        victim: Whose bundle was stolen.
        folder: Scratch space.

    Returns:
        One refusal a case, in the order of `CASES`.

    Raises:
        RuntimeError: An attack got in.
    """
    stolen = open_bundle(cast.workspace(victim) / "bundles" / victim)
    mallory = Identity.generate()
    with connect(cast.coordinator) as channel:
        intake = IntakeStub(channel)
        enrolment = Enrolment(
            pool=stolen.spec.pool, name=NAME, key=mallory.public.hex, created=timestamp(datetime.now(UTC))
        )
        envelope = sign(ENROLMENT_TYPE, {"pool": stolen.spec.pool}, enrolment, mallory)
        intake.Enrol(intake_pb2.EnrolRequest(envelope=envelope), timeout=DEADLINE_S)
    refusals = []
    for case, prepare in CASES.items():
        place = folder / case.replace(" ", "-")
        shutil.copytree(stolen.folder, place)
        (place / ENVELOPE).unlink()
        envelope = prepare(place, stolen, mallory)
        refusals.append(_attempt(cast.coordinator, case, envelope, place))
    return refusals


def _flipped_byte(place: Path, stolen: Bundle, mallory: Identity) -> bytes:
    """Sign one thing and send another: one bit of one weight differs."""
    manifest = _repack(place, stolen, mallory)
    weights = bytearray((place / ADAPTER_WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (place / ADAPTER_WEIGHTS).write_bytes(weights)
    return manifest.envelope


def _nan(place: Path, stolen: Bundle, mallory: Identity) -> bytes:
    """Sign weights of which one is not a number."""
    return _repack(place, stolen, mallory, poison=True).envelope


def _other_signature(place: Path, stolen: Bundle, mallory: Identity) -> bytes:  # noqa: ARG001 - as the other cases
    """Claim the victim's bundle under a signature of one's own, with the victim's key id on it."""
    honest = Signed.parse(stolen.manifest.envelope)
    forged = strict_json.loads(mallory.sign(honest.payload), what="The forgery")
    forged["signatures"][0]["keyid"] = honest.keyids[0]
    return strict_json.dumps(forged)


def _other_base(place: Path, stolen: Bundle, mallory: Identity) -> bytes:
    """Submit an expert for a base model that the pool does not have."""
    base = stolen.spec.base.model_copy(update={"weights": "0" * 64, "name": "another-model"})
    return _repack(place, stolen, mallory, base=base).envelope


CASES: dict[str, Callable[[Path, Bundle, Identity], bytes]] = {
    "a flipped byte": _flipped_byte,
    "a NaN": _nan,
    "someone else's signature": _other_signature,
    "another base model": _other_base,
}


def _repack(place: Path, stolen: Bundle, mallory: Identity, *, poison: bool = False, **changes: object) -> Manifest:
    # A changed weight, so that the stolen bytes are not recognised as the victim's own.
    name = next(iter(adapter_tensors(stolen.spec)))
    _overwrite(place / ADAPTER_WEIGHTS, name, float("nan") if poison else 0.125)
    spec = stolen.spec.model_copy(
        update={"contributor": mallory.public.hex, "name": NAME, "supersedes": None, **changes}
    )
    return pack(place, spec, mallory).manifest


def _overwrite(path: Path, tensor: str, value: float) -> None:
    """Replace the first number of a float32 tensor."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        begin = json.loads(file.read(length))[tensor]["data_offsets"][0]
        file.seek(8 + length + begin)
        file.write(struct.pack("<f", value))


def _attempt(address: str, case: str, envelope: bytes, place: Path) -> Refusal:
    try:
        with connect(address) as channel:
            _submit(IntakeStub(channel), envelope, place)
    except GreylagError as refused:
        return Refusal(case, refused.code.name, refused.message)
    raise RuntimeError(f"{case} got in")


def _submit(intake: IntakeStub, envelope: bytes, place: Path) -> None:
    begun = intake.Begin(intake_pb2.BeginRequest(envelope=envelope), timeout=DEADLINE_S)
    for missing in begun.missing:
        intake.Put(_stream(begun.digest, begun.token, missing, place), timeout=DEADLINE_S)
    intake.Commit(intake_pb2.CommitRequest(digest=begun.digest, token=begun.token), timeout=DEADLINE_S)
    deadline = time.monotonic() + VERDICT_S
    while time.monotonic() < deadline:
        status = intake.Status(intake_pb2.StatusRequest(digest=begun.digest), timeout=DEADLINE_S)
        if status.state == "refused":
            raise Refused(Code[status.code], status.message, status.hint)
        if status.state in ("accepted", "released"):
            return
        time.sleep(0.2)
    raise RuntimeError(f"no verdict within {VERDICT_S} seconds")


def _stream(digest: str, token: bytes, missing: intake_pb2.MissingFile, place: Path) -> Iterator[intake_pb2.PutRequest]:
    yield intake_pb2.PutRequest(start=intake_pb2.PutStart(digest=digest, token=token, name=missing.name))
    for chunk in read_chunks(place / missing.name, missing.offset):
        yield intake_pb2.PutRequest(chunk=chunk)
