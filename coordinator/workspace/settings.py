"""What an operator may set: coordinator.toml < GREYLAG_COORDINATOR_... < flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from coordinator.registry.database import anchor
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.errors import Code, Refused
from protocol.settings import read_settings
from protocol.spec import KeyHex


class Settings(BaseSettings):
    """Settings of one coordinator."""

    model_config = SettingsConfigDict(env_prefix="GREYLAG_COORDINATOR_", extra="forbid", frozen=True)

    base: str
    """Folder or Hugging Face id of the base model; its content must be the pool's."""
    database: str
    """SQLAlchemy URL; the workspace's registry.db unless set."""
    store: str
    """fsspec URL of the bytes; the workspace's store/ unless set."""
    probe: Path
    """Public text, one input a line; the workspace's probe.txt unless set."""
    rows: Path | None = None
    """Public rows that experts are tried on, JSON Lines of `input` and `target`."""
    canaries: Path | None = None
    """Rows that stay here, in the same form; their digest is the pool's."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What the worker's model computes in: what routers serve in, if that is not the checkpoint's own."""
    review_s: float = Field(default=300.0, gt=0)
    """How long one bundle may keep the worker's model busy, alone and again in the pool, in seconds."""
    listen: str = "127.0.0.1:7443"
    """`host:port`; port 0 takes a free one."""
    tls_cert: Path | None = None
    """Certificate chain, PEM; needed for any address but loopback."""
    tls_key: Path | None = None
    """Its private key, PEM."""
    metrics: str | None = None
    """`host:port` where `serve` answers GET /metrics in plain HTTP; nowhere unless set."""
    worker_metrics: str | None = None
    """The same for `worker`."""
    fleet_listen: str | None = None
    """`host:port` where `fleet` takes contributors' daemons, over TLS; without one the pool takes none."""
    fleet_address: str | None = None
    """`host:port` that contributors' daemons are told; that of `fleet_listen` unless set."""
    evaluate_after_minutes: float | None = Field(default=None, ge=0)
    """How long a candidate is open before `fleet` starts its evaluation; unless set, only the operator does."""
    signers: dict[KeyHex, str] = Field(default_factory=dict)
    """Keys that lie in no file here: the public half, and the URI of who signs with it, as securesystemslib has it."""
    witnesses: tuple[str, ...] = ()
    """Keys of witnesses whose signatures for the log are shown to all, as `greylag-router witness` prints them."""
    worker_interval_s: float = Field(default=1.0, gt=0)
    """Pause of an idle worker, in seconds."""
    session_hours: float = Field(default=24.0, gt=0)
    """How long an upload may be resumed, in hours."""
    first_bundles: int = Field(default=1, ge=1)
    """Bundles that a key may have under way before one of them was let in."""
    hourly_keys: int = Field(default=200, ge=1)
    """New keys that are taken an hour, a quarter of them from one network."""
    contributor_quota_bytes: int = Field(default=64 << 30, ge=1)
    """Most that is kept of one contributor's bundles, but for refused and yanked ones, in bytes."""
    refused_quota_bytes: int = Field(default=8 << 30, ge=1)
    """Most that one contributor may have refused in `refused_days`, in bytes."""
    refused_days: float = Field(default=7.0, ge=0)
    """After how many days `serve` drops the bytes of what was refused."""
    spool_quota_bytes: int = Field(default=16 << 30, ge=1)
    """Most that all unfinished uploads together may hold, in bytes."""
    free_disk_floor_bytes: int = Field(default=256 << 20, ge=0)
    """Disk space that uploads leave free, in bytes."""


def load(workspace: CoordinatorWorkspace, **flags: Any) -> Settings:
    """Read a workspace's settings once; flags that are None were not given.

    Raises:
        Refused: `WORKSPACE_MISSING` or `SETTINGS_INVALID`.
    """
    if not workspace.settings.is_file():
        hint = "Go to one, name one with --workspace, or make one with: greylag-coordinator init"
        raise Refused(Code.WORKSPACE_MISSING, f"{workspace.folder.resolve()} is no coordinator's workspace.", hint)
    settings = read(workspace, **flags)
    paths = {name: getattr(settings, name) for name in ("probe", "rows", "canaries", "tls_cert", "tls_key")}
    return settings.model_copy(update={name: path and workspace.folder / path for name, path in paths.items()})


def read(workspace: CoordinatorWorkspace, **given: Any) -> Settings:
    """Merge flags, environment, coordinator.toml (if there is one) and the workspace's own places.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the setting.
    """
    folder = workspace.folder.resolve()
    places = {
        "database": f"sqlite:///{folder / 'registry.db'}",
        "store": str(folder / "store"),
        "probe": folder / "probe.txt",
    }
    settings = read_settings(Settings, given, workspace.settings, places)
    return settings.model_copy(update=anchored({"database": settings.database, "store": settings.store}, folder))


def anchored(places: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Write a `database` and a `store` so that they mean the same everywhere; relative paths start at a folder."""
    means = {"database": anchor, "store": _anchor_store}
    return {name: means[name](place, folder) for name, place in places.items()}


def _anchor_store(store: str, folder: Path) -> str:
    return store if "://" in store else str(folder.resolve() / Path(store).expanduser())
