"""A new key in the old one's place. What a kill interrupts, the same command finishes: each step may come twice."""

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from client.submission.join import enrol
from client.workspace.paths import ClientWorkspace
from protocol.documents import read_enrolment, sign_rotation
from protocol.errors import Code, Refused
from protocol.files.atomic import sync, write_whole
from protocol.keys import passphrase
from protocol.signing import Identity
from protocol.v1.intake_pb2 import RotateRequest
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire.grpc_client import DEADLINE_S, connect


def next_key(workspace: ClientWorkspace) -> Identity:
    """Make the key that is to come, or read the one that an interrupted rotation left.

    Raises:
        Refused: `KEY_UNREADABLE` or `PASSPHRASE`.
    """
    path = _next(workspace)
    return passphrase.load(path) if path.exists() else passphrase.create(path)


def announce(workspace: ClientWorkspace, old: Identity, new: Identity, now: datetime) -> None:
    """Tell the coordinator, by a statement of both keys; to one that does not know the old key there is nothing to say.

    Raises:
        Refused: `KEY_REVOKED`, `KEY_ROTATED` or `NAME_TAKEN`.
        Unavailable: `UNREACHABLE`, `BUSY` or `CLOSED`.
    """
    request = RotateRequest(envelope=sign_rotation(workspace.pool, old, new, now))
    try:
        with connect(workspace.settings.coordinator, workspace.settings.ca) as channel:
            IntakeStub(channel).Rotate(request, timeout=DEADLINE_S)
    except Refused as error:
        if error.code is not Code.KEY_UNKNOWN:
            raise


def take_over(workspace: ClientWorkspace, new: Identity, now: datetime) -> None:
    """Put the new key in the old one's place, whose file is kept beside it, and have it introduce itself."""
    path = workspace.root / workspace.settings.key
    if path.exists():
        with suppress(FileExistsError):
            os.link(path, path.with_name(f"{path.name}.{_named(workspace)}"))
    _next(workspace).replace(path)
    sync(path.parent)
    # Last, since it names the old key until then; whatever is submitted introduces the key anew if this is missing.
    write_whole(workspace.enrolment_file, enrol(workspace.pool, workspace.settings.name, new, now))


def _next(workspace: ClientWorkspace) -> Path:
    path = workspace.root / workspace.settings.key
    return path.with_name(f"{path.name}.next")


def _named(workspace: ClientWorkspace) -> str:
    """Name the old key by its first digits, as far as its introduction tells them: the key itself may not open."""
    try:
        return read_enrolment(workspace.enrolment_file.read_bytes()).key[:8]
    except (OSError, Refused):
        return "old"
