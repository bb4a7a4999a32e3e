"""Private keys in files: made, opened and locked with the passphrase of the environment or of a person."""

import getpass
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from protocol.errors import Code, Refused
from protocol.files.atomic import replace_secret
from protocol.signing import Identity

PASSPHRASE_VARIABLE = "GREYLAG_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
NEW_PASSPHRASE_VARIABLE = "GREYLAG_NEW_KEY_PASSPHRASE"  # noqa: S105 - likewise
Ask = Callable[[str], str | None]


def ask_on_terminal(prompt: str) -> str | None:
    """Ask a person for a passphrase; None where nobody can answer."""
    return getpass.getpass(prompt) if sys.stdin.isatty() else None


def ask_once(ask: Ask = ask_on_terminal) -> Ask:
    """Have a person type a passphrase that opens several keys once."""
    told: list[str | None] = []

    def answer(prompt: str) -> str | None:
        if not told:
            told.append(ask(prompt))
        return told[0]

    return answer


def the_passphrase(path: Path, ask: Ask = ask_on_terminal) -> str | None:
    """Return the passphrase of the environment, or of a person; None where nobody gives one."""
    return os.environ.get(PASSPHRASE_VARIABLE) or ask(f"Passphrase for {path}: ")


def load(path: Path, ask: Ask = ask_on_terminal) -> Identity:
    """Read a private key, with the passphrase of the environment or of a person; a key without one needs none.

    Raises:
        Refused: `KEY_UNREADABLE`, `KEY_TYPE` or `PASSPHRASE`.
    """
    try:
        return Identity.load(path)
    except Refused as error:
        if error.code is not Code.PASSPHRASE or (answer := the_passphrase(path, ask)) is None:
            raise
        return Identity.load(path, answer)


def is_locked(path: Path) -> bool:
    """Tell whether a key has a passphrase; raises as `Identity.load` for what is no key."""
    try:
        Identity.load(path)
    except Refused as error:
        if error.code is not Code.PASSPHRASE:
            raise
        return True
    return False


def create(path: Path, ask: Ask = ask_on_terminal) -> Identity:
    """Make a new key; the environment's or a person's passphrase protects it.

    Raises:
        Refused: `KEY_EXISTS`, or `PASSPHRASE` if a person's two answers differ.
    """
    if path.exists():
        raise Refused(Code.KEY_EXISTS, f"There is a key at {path} already.", "Move it away first.")
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    if passphrase is None:
        passphrase = _chosen(ask)
    identity = Identity.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    identity.save(path, passphrase or None)
    return identity


def lock(paths: Sequence[Path], ask: Ask = ask_on_terminal) -> None:
    """Put keys under one new passphrase, or under none; each file changes whole, so an interrupted run is run again.

    Raises:
        Refused: `PASSPHRASE` where nobody gives a new one, or as `load`; then no key has changed.
    """
    new = os.environ.get(NEW_PASSPHRASE_VARIABLE)
    last = ask_once(ask)
    if new is None:
        new = _chosen(ask)
    if new is None:
        what = "Nobody is there to type the new passphrase."
        raise Refused(Code.PASSPHRASE, what, f"Give it in {NEW_PASSPHRASE_VARIABLE}; empty for none.")
    opened = [(path, _opened_by(path, new, last)) for path in paths]
    for path, identity in opened:
        if identity is not None:
            replace_secret(path, identity.private_bytes(new or None))


def _opened_by(path: Path, new: str, ask: Ask) -> Identity | None:
    """Open a key, or return None where the new passphrase already opens it."""
    try:
        Identity.load(path, new or None)
    except Refused as error:
        if error.code is not Code.PASSPHRASE:
            raise
        return load(path, ask)
    return None


def _chosen(ask: Ask) -> str | None:
    passphrase = ask("Passphrase for the new key (empty for none): ")
    if passphrase and ask("The same passphrase again: ") != passphrase:
        raise Refused(Code.PASSPHRASE, "The two passphrases differ.", "Run the command again.")
    return passphrase
