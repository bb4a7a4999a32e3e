"""Joining a pool: fetch it, trust it, hold the base model against it, make a key, write it all down."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from client.submission import upload
from client.submission.enrolment import enrol
from client.workspace import keys
from client.workspace import settings as client_settings
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.documents import Pool, read_pool
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.settings import dump_settings
from protocol.signing import PublicKey
from router.base.fingerprint import check_base


@dataclass(frozen=True)
class Joined:
    """A new workspace."""

    settings: ClientSettings
    pool: Pool
    key: PublicKey


def join(workspace: ClientWorkspace, flags: Mapping[str, object], now: datetime) -> Joined:
    """Make a workspace for one pool. client.toml is written last; without it there is no workspace.

    Args:
        workspace: Where.
        flags: Settings by name; `coordinator` is needed, None means not given.
        now: Time of the enrolment.

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
    coordinator = upload.Coordinator(str(flags["coordinator"]), Path(str(ca)) if ca else None)
    trusted = PublicKey.from_hex(str(pool_key)) if pool_key else None
    pool = read_pool(upload.fetch_pool(coordinator), trusted)
    with workspace.lock():
        return _found(workspace, pool, flags, now)


def _found(workspace: ClientWorkspace, pool: Pool, flags: Mapping[str, object], now: datetime) -> Joined:
    base = _base_setting(flags.get("base"), pool)
    check_base(base, pool.spec.base, workspace.base_cache)
    key_file = workspace.root / "contributor.key"
    made = not key_file.exists()
    identity = keys.create(key_file) if made else keys.load(key_file)
    ca = flags.get("ca")
    try:
        settings = client_settings.from_flags(
            **{
                **flags,
                "base": base,
                "pool_key": pool.spec.coordinator,
                "name": flags.get("name") or f"contributor-{identity.public.hex[:8]}",
                "ca": None if ca is None else str(Path(str(ca)).resolve()),
            }
        )
        write_whole(workspace.pool_file, pool.envelope)
        write_whole(workspace.enrolment_file, enrol(pool, settings.name, identity, now))
        write_whole(workspace.settings_file, dump_settings(settings))
    except BaseException:
        for path in (workspace.pool_file, workspace.enrolment_file, *([key_file] if made else [])):
            path.unlink(missing_ok=True)
        raise
    return Joined(settings, pool, identity.public)


def _base_setting(given: object, pool: Pool) -> str:
    """Name the base model so that verbs find it from any folder."""
    name = pool.spec.base.name if given is None else str(given)
    return str(Path(name).resolve()) if Path(name).is_dir() else name
