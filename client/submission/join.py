"""Joining a pool: fetch it, trust it, hold the base model against it, make a key, write it all down."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic_settings import EnvSettingsSource

from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.documents import (
    ENROLMENT_TYPE,
    Enrolment,
    Pool,
    check_name,
    read_enrolment,
    read_pool,
    sign,
    timestamp,
)  # fmt: skip
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.keys import passphrase
from protocol.settings import dump_settings, read_settings
from protocol.signing import Identity, PublicKey
from protocol.v1.catalog_pb2 import GetPoolRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.v1.intake_pb2 import EnrolRequest
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire.grpc_client import DEADLINE_S, connect
from router.base.fingerprint import check_base

_OPEN = {"pool_key": "0" * 64, "base": "the pool's", "name": "made-from-the-key"}
"""Hold the place of what the pool and the key tell where nobody chose."""


def join(
    workspace: ClientWorkspace,
    flags: Mapping[str, Any],
    now: datetime,
    say: Callable[[str], object] = str,
    *,
    invite: str = "",
) -> PublicKey:
    """Make a workspace for one pool, with settings by name, of which `coordinator` is needed, and say which it is.

    The environment gives what flags do not, as for every other verb. Where the pool takes new keys by invitation, or
    with an invite's token, the key enrols at once. client.toml is written last; without it there is no workspace.

    Returns:
        The contributor's key.

    Raises:
        Refused: `WORKSPACE_EXISTS`, `UNTRUSTED`, `BASE_MISMATCH`, `BASE_UNREADABLE`, `SETTINGS_INVALID`, `INVITE`
            or a code of the key.
        Unavailable: `UNREACHABLE` or `BUSY`.
    """
    if workspace.settings_file.exists():
        what = f"{workspace.root.resolve()} is a workspace already."
        raise Refused(Code.WORKSPACE_EXISTS, what, "Choose another folder with --workspace.")
    given = EnvSettingsSource(ClientSettings)() | {name: flag for name, flag in flags.items() if flag is not None}
    asked = read_settings(ClientSettings, given, defaults=_OPEN)  # before anybody is spoken to
    trusted = PublicKey.from_hex(asked.pool_key) if "pool_key" in given else None
    with connect(asked.coordinator, asked.ca) as channel:
        envelope = CatalogStub(channel).GetPool(GetPoolRequest(), timeout=DEADLINE_S).envelope
    pool = read_pool(envelope, trusted)
    base = asked.base if "base" in given else pool.spec.base.name
    if Path(base).is_dir():
        base = str(Path(base).resolve())  # so that verbs find it from any folder
    with workspace.lock():
        check_base(base, pool.spec.base, workspace.base_cache)
        key_file = workspace.root / asked.key
        made = not key_file.exists()
        identity = passphrase.create(key_file) if made else passphrase.load(key_file)
        chosen = {
            "base": base, "pool_key": pool.spec.coordinator, "ca": asked.ca and asked.ca.resolve(),
            "name": given.get("name", f"contributor-{identity.public.hex[:8]}"),
        }  # fmt: skip
        try:
            settings = read_settings(ClientSettings, {**given, **chosen})
            write_whole(workspace.pool_file, pool.envelope)
            write_whole(workspace.enrolment_file, envelope := enrol(pool, settings.name, identity, now))
            if invite or pool.spec.policy.enrolment == "invite":
                made = False  # whatever fails from here on, the invite may be used up, and this key be the one
                _introduce(asked, EnrolRequest(envelope=envelope, invite=invite))
            write_whole(workspace.settings_file, dump_settings(settings))
        except BaseException:
            for path in (workspace.pool_file, workspace.enrolment_file, *([key_file] if made else [])):
                path.unlink(missing_ok=True)
            raise
    if trusted is None:
        say(f"Trusting the pool's key {pool.spec.coordinator} on first use; compare it with the operator's.")
    say(f"Joined the pool {pool.spec.name} as {settings.name}, base model {pool.spec.base.name}.")
    return identity.public


def _introduce(settings: ClientSettings, request: EnrolRequest) -> None:
    with connect(settings.coordinator, settings.ca) as channel:
        IntakeStub(channel).Enrol(request, timeout=DEADLINE_S)


def enrol(pool: Pool, name: str, identity: Identity, now: datetime) -> bytes:
    """Sign the introduction of a key under a name.

    Raises:
        Refused: `NAME_MISLEADING`.
    """
    check_name(name)
    enrolment = Enrolment(pool=pool.digest, name=name, key=identity.public.hex, created=timestamp(now))
    return sign(ENROLMENT_TYPE, {"pool": pool.digest}, enrolment, identity)


def enrolled(workspace: ClientWorkspace, key: PublicKey) -> bytes | None:
    """Return the stored enrolment if it still says what the settings say."""
    try:
        envelope = workspace.enrolment_file.read_bytes()
        enrolment = read_enrolment(envelope)
    except (OSError, Refused):
        return None
    said = workspace.pool.digest, workspace.settings.name, key.hex
    return envelope if (enrolment.pool, enrolment.name, enrolment.key) == said else None
