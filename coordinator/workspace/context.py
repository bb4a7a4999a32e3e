"""Opens a workspace: what every command needs of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from coordinator.registry.registry import Registry
from coordinator.registry.tables import Event
from coordinator.workspace.checkpoints import Checkpoints
from coordinator.workspace.high_water import HighWater
from coordinator.workspace.metrics import Metrics
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.roles import Roles
from coordinator.workspace.settings import Settings
from protocol.documents import Pool, read_pool, read_timestamp
from protocol.errors import Code, GreylagError, Refused
from protocol.signing import Identity

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Opened:
    """A workspace whose key signed its pool and whose registry answers."""

    workspace: CoordinatorWorkspace
    settings: Settings
    pool: Pool
    identity: Identity
    registry: Registry

    @property
    def high_water(self) -> HighWater:
        """How far the pool had come."""
        return HighWater(self.workspace, self.registry, self.pool, self.checkpoints)

    @property
    def roles(self) -> Roles:
        """Who says which release is the newest."""
        return Roles(self.workspace, self.registry, self.pool, self.identity)

    @property
    def checkpoints(self) -> Checkpoints:
        """The log's head."""
        return Checkpoints(self.workspace, self.registry, self.pool, self.identity)


@contextmanager
def opened(workspace: CoordinatorWorkspace, settings: Settings, metrics: Metrics | None = None) -> Iterator[Opened]:
    """Open a workspace and close it again.

    Raises:
        Refused: `KEY_UNREADABLE`, `WORKSPACE_MISSING`, `UNTRUSTED`, `SCHEMA_MISMATCH`, `SETTINGS_INVALID` for the
            database of another pool, or any code of an envelope.
        Unavailable: `BUSY` if the database does not answer.
    """
    identity = Identity.load(workspace.key)
    try:
        envelope = workspace.pool.read_bytes()
    except OSError as error:
        what = f"{workspace.pool} cannot be read: {error.strerror}."
        raise Refused(Code.WORKSPACE_MISSING, what, "Restore it from a copy.") from error
    pool = read_pool(envelope, trusted=identity.public)

    def announce(event: Event) -> None:
        _log.info(event.kind, subject=event.subject, step=event.step, actor=event.actor, code=event.code)
        if metrics is not None and event.kind == "bundle":
            metrics.stepped(event.step)
            if event.code:
                metrics.refused(Code[event.code])
        open_.high_water.rise(event)
        if event.kind == "release":
            try:
                open_.roles.level(now=read_timestamp(event.at))
            except (OSError, GreylagError) as error:  # whoever asks for the timestamp sets it right
                _log.warning("not signed", error=str(error))

    registry = Registry.open(settings.database, announce)
    open_ = Opened(workspace, settings, pool, identity, registry)
    try:
        registry.claim(pool.digest, now=read_timestamp(pool.spec.created))
        yield open_
    finally:
        registry.close()
