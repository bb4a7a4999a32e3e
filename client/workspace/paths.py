"""The folder of one contributor: where everything stands, one process at a time, whole files only.

client.toml        settings                     contributor.key    private key, never sent
pool.dsse.json     the pool, signed             enrolment.dsse.json  the key's own introduction
runs/<run-id>/     training in progress         bundles/<name>/    finished bundles
outbox/            what was submitted           base.json          fingerprint of the base, cached
checkpoint.txt     the last checkpoint of the pool's log that was seen
roots/             the pool's roots, which say whose keys have the coordinator's duties
split.key          decides which rows are held out, never sent
"""

import secrets
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from grpc import Channel

from client.workspace.settings import ClientSettings
from protocol.documents import Pool, read_pool
from protocol.errors import Code, Refused
from protocol.files.atomic import write_secret
from protocol.files.locks import held
from protocol.keys import passphrase
from protocol.roles.chain import keep_up, with_duties
from protocol.settings import read_settings
from protocol.signing import Identity, PublicKey
from protocol.v1.catalog_pb2_grpc import CatalogStub

_SPLIT_KEY_BYTES = 32


class ClientWorkspace:
    """Paths inside a workspace, and what its files say, each read when it is first asked for.

    Args:
        root: The folder.
        flags: Settings that were given on the command line; None means not given.
    """

    def __init__(self, root: Path, **flags: object) -> None:
        self._flags = flags
        self.root = root
        self.settings_file = root / "client.toml"
        self.pool_file = root / "pool.dsse.json"
        self.enrolment_file = root / "enrolment.dsse.json"
        """Signed once, so that submitting needs no private key."""
        self.roots = root / "roots"
        """The pool's roots, which say whose keys have the coordinator's duties."""
        self.base_cache = root / "base.json"
        self.runs = root / "runs"
        self.bundles = root / "bundles"
        self.outbox = root / "outbox"
        self.checkpoint = root / "checkpoint.txt"
        """The last checkpoint of the pool's log that was seen."""

    @cached_property
    def settings(self) -> ClientSettings:
        """What the contributor chose.

        Raises:
            Refused: `SETTINGS_INVALID`, naming the setting, or `WORKSPACE_MISSING`.
        """
        if not self.settings_file.is_file():
            raise Refused(
                Code.WORKSPACE_MISSING,
                f"{self.root.resolve()} is no workspace yet: it holds no {self.settings_file.name}.",
                "Make one with: greylag-client init --coordinator HOST:PORT",
            )
        return read_settings(ClientSettings, self._flags, self.settings_file)

    @cached_property
    def pool(self) -> Pool:
        """The pool, signed by the key that the settings trust.

        Raises:
            Refused: `WORKSPACE_MISSING`, `UNTRUSTED`, or any code of an envelope.
        """
        trusted = PublicKey.from_hex(self.settings.pool_key)
        try:
            envelope = self.pool_file.read_bytes()
        except OSError as error:
            raise Refused(
                Code.WORKSPACE_MISSING,
                f"{self.pool_file} cannot be read: {error.strerror}.",
                "Start a new workspace with: greylag-client init --coordinator HOST:PORT",
            ) from error
        return with_duties(read_pool(envelope, trusted), self.roots)

    def keep_up(self, channel: Channel) -> Pool:
        """Ask the coordinator whose keys have its duties now, and return the pool as it is from now on.

        Raises:
            Refused: As `protocol.roles.chain.keep_up`.
            Unavailable: Likewise.
        """
        self.pool = keep_up(self.pool, self.roots, CatalogStub(channel), now=datetime.now(UTC))
        return self.pool

    @cached_property
    def split_key(self) -> bytes:
        """The key that decides which rows are held out; made once, when it is first asked for.

        Raises:
            Refused: `KEY_UNREADABLE`.
        """
        path = self.root / "split.key"
        with suppress(FileExistsError):
            write_secret(path, secrets.token_bytes(_SPLIT_KEY_BYTES))
        key = path.read_bytes()
        if len(key) != _SPLIT_KEY_BYTES:
            raise Refused(
                Code.KEY_UNREADABLE,
                f"{path} holds no key of {_SPLIT_KEY_BYTES} bytes.",
                "Restore it from a copy; without it, rows that were trained on may be held out.",
            )
        return key

    def identity(self) -> Identity:
        """Read the contributor's private key.

        Raises:
            Refused: As `protocol.keys.passphrase.load`.
        """
        return passphrase.load(self.root / self.settings.key)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes out for as long as the block runs.

        Raises:
            Refused: `WORKSPACE_BUSY`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        busy = f"Another greylag-client works in {self.root.resolve()}."
        return held(self.root / ".lock", busy, "Wait until it has finished, or choose another folder with --workspace.")
