"""The folder of one contributor: where everything stands, one process at a time, whole files only.

client.toml        settings                     contributor.key    private key, never sent
pool.dsse.json     the pool, signed             enrolment.dsse.json  the key's own introduction
runs/<run-id>/     training in progress         bundles/<name>/    finished bundles
outbox/            what was submitted           base.json          fingerprint of the base, cached
split.key          decides which rows are held out, never sent
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from protocol.documents import Pool, read_pool
from protocol.errors import Code, Refused
from protocol.files.atomic import write_secret
from protocol.signing import PublicKey

_SPLIT_KEY_BYTES = 32


@dataclass(frozen=True)
class ClientWorkspace:
    """Paths inside a workspace."""

    root: Path

    @property
    def settings_file(self) -> Path:
        """client.toml; a folder that holds it is a workspace."""
        return self.root / "client.toml"

    @property
    def pool_file(self) -> Path:
        """The pool's signed document."""
        return self.root / "pool.dsse.json"

    @property
    def enrolment_file(self) -> Path:
        """The enrolment, signed once, so that submitting needs no private key."""
        return self.root / "enrolment.dsse.json"

    @property
    def base_cache(self) -> Path:
        """Cached fingerprint of the base model."""
        return self.root / "base.json"

    @property
    def runs(self) -> Path:
        """Training in progress, one folder a run."""
        return self.root / "runs"

    @property
    def bundles(self) -> Path:
        """Finished bundles, one folder an expert."""
        return self.root / "bundles"

    @property
    def outbox(self) -> Path:
        """Records of submitted bundles."""
        return self.root / "outbox"

    def split_key(self) -> bytes:
        """Read the key that decides which rows are held out; made once, when it is first asked for.

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

    def pool(self, trusted: str) -> Pool:
        """Read the pool's document.

        Args:
            trusted: The key that must have signed it, 64 hexadecimal digits.

        Raises:
            Refused: `WORKSPACE_MISSING`, `UNTRUSTED`, or any code of an envelope.
        """
        try:
            envelope = self.pool_file.read_bytes()
        except OSError as error:
            raise Refused(
                Code.WORKSPACE_MISSING,
                f"{self.pool_file} cannot be read: {error.strerror}.",
                "Start a new workspace with: greylag-client init --coordinator HOST:PORT",
            ) from error
        return read_pool(envelope, PublicKey.from_hex(trusted))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out for as long as the block runs.

        Raises:
            Refused: `WORKSPACE_BUSY`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.root / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise Refused(
                Code.WORKSPACE_BUSY,
                f"Another greylag-client works in {self.root.resolve()}.",
                "Wait until it has finished, or choose another folder with --workspace.",
            ) from error
