"""Joining a pool: fetch it, trust it, hold the base model against it, make a key, write it all down."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from client.workspace import keys
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
from protocol.settings import dump_settings, read_settings
from protocol.signing import Identity, PublicKey
from protocol.v1.catalog_pb2 import GetPoolRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.wire.grpc_client import DEADLINE_S, connect
from router.base.fingerprint import check_base


def join(workspace: ClientWorkspace, flags: Mapping[str, Any], now: datetime) -> PublicKey:
    """Make a workspace for one pool, with settings by name, of which `coordinator` is needed.

    client.toml is written last; without it there is no workspace.

    Returns:
        The contributor's key.

    Raises:
        Refused: `WORKSPACE_EXISTS`, `UNTRUSTED`, `BASE_MISMATCH`, `BASE_UNREADABLE`, `SETTINGS_INVALID`
            or a code of the key.
        Unavailable: `UNREACHABLE` or `BUSY`.
    """
    if workspace.settings_file.exists():
        raise Refused(
            Code.WORKSPACE_EXISTS,
            f"{workspace.root.resolve()} is a workspace already.",
            "Choose another folder with --workspace.",
        )
    pool_key, ca = flags.get("pool_key"), flags.get("ca")
    with connect(flags["coordinator"], ca) as channel:
        envelope = CatalogStub(channel).GetPool(GetPoolRequest(), timeout=DEADLINE_S).envelope
    pool = read_pool(envelope, PublicKey.from_hex(pool_key) if pool_key else None)
    base = str(flags.get("base") or pool.spec.base.name)
    if Path(base).is_dir():
        base = str(Path(base).resolve())  # so that verbs find it from any folder
    with workspace.lock():
        check_base(base, pool.spec.base, workspace.base_cache)
        key_file = workspace.root / "contributor.key"
        made = not key_file.exists()
        identity = keys.create(key_file) if made else keys.load(key_file)
        chosen = {
            "base": base, "pool_key": pool.spec.coordinator, "ca": ca and ca.resolve(),
            "name": flags.get("name") or f"contributor-{identity.public.hex[:8]}",
        }  # fmt: skip
        try:
            settings = read_settings(ClientSettings, {**flags, **chosen})
            write_whole(workspace.pool_file, pool.envelope)
            write_whole(workspace.enrolment_file, enrol(pool, settings.name, identity, now))
            write_whole(workspace.settings_file, dump_settings(settings))
        except BaseException:
            for path in (workspace.pool_file, workspace.enrolment_file, *([key_file] if made else [])):
                path.unlink(missing_ok=True)
            raise
    return identity.public


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
