"""Opens a workspace: what every command needs of it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

from coordinator.registry.registry import Registry
from coordinator.registry.tables import Event
from coordinator.workspace.checkpoints import Checkpoints
from coordinator.workspace.high_water import HighWater
from coordinator.workspace.keyring import Keyring
from coordinator.workspace.metrics import Metrics
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.roles import Roles
from coordinator.workspace.settings import Settings
from protocol.documents import Duty, Pool, read_pool, read_timestamp
from protocol.errors import Code, GreylagError, Refused
from protocol.files.atomic import write_secret
from protocol.roles.chain import with_duties
from protocol.signing import Identity, PublicKey

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Opened:
    """A workspace whose keys are at hand and whose registry answers."""

    workspace: CoordinatorWorkspace
    settings: Settings
    pool: Pool
    keyring: Keyring
    registry: Registry

    @property
    def identity(self) -> Identity:
        """The pool's key, for what no other key may sign (`KEY_UNREADABLE` or `PASSPHRASE`)."""
        return self.keyring.get(PublicKey.from_hex(self.pool.spec.coordinator), "is the pool's")

    def signer(self, duty: Duty) -> Identity:
        """Return the key that has a duty now (`KEY_UNREADABLE` or `PASSPHRASE`)."""
        return self.keyring.get(self.pool.key(duty), f"has the duty {duty.value}")

    def sketch_secret(self, purpose: bytes) -> bytes:
        """Return what draws sketches: drawn from the pool's key at first, and kept, since that key may go elsewhere.

        Raises:
            Refused: `KEY_UNREADABLE` where it was lost, since sketches by another one would find no copies.
        """
        path = self.workspace.sketches
        if not path.exists():
            held = self.keyring.find(PublicKey.from_hex(self.pool.spec.coordinator))
            if held is not None and held.is_held:
                drawn = held.secret(purpose)
            elif not self.registry.sketches.any():
                drawn = secrets.token_bytes(32)
            else:
                hint = "Restore it from a copy, or put coordinator.key back for one start of the worker."
                raise Refused(Code.KEY_UNREADABLE, f"{path} is missing, and copies would not be found.", hint)
            with suppress(FileExistsError):
                write_secret(path, drawn)
        return path.read_bytes()

    @property
    def high_water(self) -> HighWater:
        """How far the pool had come."""
        return HighWater(self.workspace, self.registry, self.pool, self.checkpoints)

    @property
    def roles(self) -> Roles:
        """Who says which release is the newest."""
        return Roles(self.workspace, self.registry, self.pool, self.keyring)

    @property
    def checkpoints(self) -> Checkpoints:
        """The log's head."""
        return Checkpoints(self.workspace, self.registry, self.pool, self.keyring)


@contextmanager
def opened(
    workspace: CoordinatorWorkspace, settings: Settings, metrics: Metrics | None = None, *, signs: bool = True
) -> Iterator[Opened]:
    """Open a workspace and close it again.

    Args:
        workspace: The workspace.
        settings: Its settings.
        metrics: Count what happens.
        signs: Whether steps are to be logged; without the key of the log, nothing but roots can be seen to.

    Raises:
        Refused: `KEY_UNREADABLE` or `PASSPHRASE` for the key of the log, `WORKSPACE_MISSING`, `UNTRUSTED`,
            `SCHEMA_MISMATCH`, `SETTINGS_INVALID` for the database of another pool, or any code of an envelope.
        Unavailable: `BUSY` if the database does not answer.
    """
    keyring = Keyring(workspace, settings.signers)
    try:
        envelope = workspace.pool.read_bytes()
    except OSError as error:
        what = f"{workspace.pool} cannot be read: {error.strerror}."
        raise Refused(Code.WORKSPACE_MISSING, what, "Restore it from a copy.") from error
    pool = with_duties(read_pool(envelope, trusted=keyring.of_pool()), workspace.roots)
    if signs:
        keyring.get(pool.key(Duty.LOG), "has the duty log")

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
    open_ = Opened(workspace, settings, pool, keyring, registry)
    try:
        registry.claim(pool.digest, now=read_timestamp(pool.spec.created))
        yield open_
    finally:
        registry.close()
