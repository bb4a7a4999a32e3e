"""Five submissions that must not get in, by somebody who does not use our client's checks."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from client.submission import upload
from client.workspace.paths import ClientWorkspace
from deploy.demo.federation import Federation
from protocol.bundle import ADAPTER_WEIGHTS, ENVELOPE, Bundle, Manifest, open_bundle, pack
from protocol.documents import ENROLMENT_TYPE, Enrolment, sign, timestamp
from protocol.errors import Code, GreylagError, Refused
from protocol.files import strict_json
from protocol.signing import Identity, Signed

NAME = "mallory"
DECIDED = ("refused", "accepted", "released")
VERDICT_S = 60.0
"""How long to wait for the worker's verdict, in seconds."""


def attempt_all(cast: Federation, victim: str, folder: Path) -> dict[str, GreylagError]:
    """Try the attacks with a stolen copy of a contributor's bundle, and return how each was refused.

    Raises:
        RuntimeError: An attack got in.
    """
    stolen, mallory = open_bundle(cast.place(victim) / "bundles" / victim), Identity.generate()
    pool, now = stolen.spec.pool, timestamp(datetime.now(UTC))
    wish = Enrolment(pool=pool, name=NAME, key=mallory.public.hex, created=now)
    enrolment = sign(ENROLMENT_TYPE, {"pool": pool}, wish, mallory)
    refusals: dict[str, GreylagError] = {}
    home = ClientWorkspace(cast.place(victim))
    shutil.rmtree(folder, ignore_errors=True)  # an earlier attempt's
    for case, prepare in CASES.items():
        place = folder / case.replace(" ", "-")
        shutil.copytree(stolen.folder, place)
        (place / ENVELOPE).unlink()
        try:
            _submit(Bundle(place, prepare(place, stolen, mallory)), enrolment, home.keep_up, cast.coordinator)
        except GreylagError as refused:
            refusals[case] = refused
        else:
            raise RuntimeError(f"{case} got in")
    return refusals


def _submit(bundle: Bundle, enrolment: bytes, pool: upload.KeepUp, address: str) -> None:
    coordinator = upload.Coordinator(address, give_up_after_s=VERDICT_S)
    upload.Transfer(bundle, enrolment, lambda _: None, pool).attempt(coordinator)
    status = upload.wait(bundle.digest, coordinator, lambda reply: reply.state in DECIDED)
    if status.state == "refused":
        raise Refused(Code[status.code], status.message, status.hint)


def _flipped_byte(place: Path, stolen: Bundle, mallory: Identity) -> Manifest:
    """Sign one thing and send another: one bit of one weight differs."""
    manifest = _repack(place, stolen, mallory)
    weights = bytearray((place / ADAPTER_WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (place / ADAPTER_WEIGHTS).write_bytes(weights)
    return manifest


def _nan(place: Path, stolen: Bundle, mallory: Identity) -> Manifest:
    """Sign weights of which one is not a number."""
    return _repack(place, stolen, mallory, weight=float("nan"))


def _huge(place: Path, stolen: Bundle, mallory: Identity) -> Manifest:
    """Sign weights that are all in order, but for one that drowns every answer."""
    return _repack(place, stolen, mallory, weight=1e20)


def _other_signature(place: Path, stolen: Bundle, mallory: Identity) -> Manifest:  # noqa: ARG001 - as the other cases
    """Claim the victim's bundle under a signature of one's own, with the victim's key id on it."""
    honest = Signed.parse(stolen.manifest.envelope)
    forged = strict_json.loads(mallory.sign(honest.payload), what="The forgery")
    forged["signatures"][0]["keyid"] = honest.keyids[0]
    return replace(stolen.manifest, envelope=strict_json.dumps(forged))


def _other_base(place: Path, stolen: Bundle, mallory: Identity) -> Manifest:
    """Submit an expert for a base model that the pool does not have."""
    base = stolen.spec.base.model_copy(update={"weights": "0" * 64, "name": "another-model"})
    return _repack(place, stolen, mallory, base=base)


CASES: dict[str, Callable[[Path, Bundle, Identity], Manifest]] = {
    "a flipped byte": _flipped_byte,
    "a NaN": _nan,
    "a weight of 1e20": _huge,
    "someone else's signature": _other_signature,
    "another base model": _other_base,
}


def _repack(place: Path, stolen: Bundle, mallory: Identity, *, weight: float = 0.125, **changes: object) -> Manifest:
    # A changed weight, so that the stolen bytes are not recognised as the victim's own.
    tensors = load_file(place / ADAPTER_WEIGHTS)
    np.put(next(iter(tensors.values())), 0, weight)
    save_file(tensors, place / ADAPTER_WEIGHTS, {"format": "pt"})
    mine = {"contributor": mallory.public.hex, "name": NAME, "supersedes": None}
    return pack(place, stolen.spec.model_copy(update=mine | changes), mallory).manifest
