"""The keys that a workspace signs with: in its files, under a passphrase or not, or behind signers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.errors import Code, Refused
from protocol.keys.passphrase import Ask, ask_on_terminal, ask_once, is_locked, load, the_passphrase
from protocol.keys.signers import open_signer
from protocol.signing import Identity, PublicKey


class Keyring:
    """Finds keys by their public half; each file is opened once, and a person asked for a passphrase once.

    Args:
        workspace: Whose files.
        signers: URIs by public half, for keys that lie in no file here.
        held: Keys that are at hand already.
        ask: Asks a person.
    """

    def __init__(
        self,
        workspace: CoordinatorWorkspace,
        signers: Mapping[str, str] = MappingProxyType({}),
        *,
        held: Iterable[Identity] = (),
        ask: Ask = ask_on_terminal,
    ) -> None:
        self._workspace, self._ask = workspace, ask_once(ask)
        keys = ((PublicKey.from_hex(key), uri) for key, uri in signers.items())
        self._held = [*held, *(open_signer(uri, key, self._ask) for key, uri in keys)]
        self._opened: dict[tuple[Path, int], Identity] = {}

    def files(self) -> list[Path]:
        """List the files of keys."""
        return [path for path in (self._workspace.key, *sorted(self._workspace.roles.glob("*.key"))) if path.is_file()]

    def placed(self) -> list[tuple[Path | None, Identity]]:
        """Return the keys at hand by their files; None for one behind a signer."""
        self._look()
        here = {path: key for (path, _), key in self._opened.items()}
        return [*((path, here[path]) for path in self.files() if path in here), *((None, key) for key in self._held)]

    def all(self) -> list[Identity]:
        """Return the keys at hand: those whose passphrase nobody gives are left out."""
        return self._look()[0]

    def find(self, key: PublicKey) -> Identity | None:
        """Return a key; None for one that lies elsewhere (`PASSPHRASE` if it may be in a file that nobody opens)."""
        held, locked = self._look()
        found = next((identity for identity in held if identity.public == key), None)
        if found is None and locked is not None:
            raise locked
        return found

    def get(self, key: PublicKey, what: str) -> Identity:
        """Return a key, named for a sentence by what it does (`PASSPHRASE`, or `KEY_UNREADABLE`)."""
        if (found := self.find(key)) is not None:
            return found
        where = f"neither in {self._workspace.folder.resolve()} nor behind a signer"
        raise Refused(
            Code.KEY_UNREADABLE,
            f"Key {key.hex[:16]}, which {what}, lies {where}.",
            "Put its file there, or name its signer under [signers] in coordinator.toml.",
        )

    def of_pool(self) -> PublicKey | None:
        """Return the public half of coordinator.key; None where it is not here, or nobody opens it."""
        self._look()
        return next((key.public for (path, _), key in self._opened.items() if path == self._workspace.key), None)

    def make(self, name: str) -> Identity:
        """Make a key among those of the roles, under the passphrase of the others; one of an earlier draft stays."""
        if not (path := self._workspace.roles / f"{name}.key").exists():
            Identity.generate().save(path, self.passphrase())
        return load(path, self._ask)

    def passphrase(self) -> str | None:
        """Return what a new key is put under: what those that are here are under, if they are."""
        locked = next((path for path in self.files() if is_locked(path)), None)
        return None if locked is None else the_passphrase(locked, self._ask)

    def _look(self) -> tuple[list[Identity], Refused | None]:
        held, locked = list(self._held), None
        for path in self.files():
            place = path, path.stat().st_mtime_ns
            try:
                if place not in self._opened:
                    self._opened[place] = load(path, self._ask)
            except Refused as error:
                if error.code is not Code.PASSPHRASE:
                    raise
                locked = locked or error
            else:
                held.append(self._opened[place])
        return held, locked
