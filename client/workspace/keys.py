"""The contributor's private key: made here, read here, never sent."""

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

from protocol.errors import Code, Refused
from protocol.signing import Identity

PASSPHRASE_VARIABLE = "GREYLAG_KEY_PASSPHRASE"  # noqa: S105 - the variable's name


def ask_on_terminal(prompt: str) -> str | None:
    """Ask a person for a passphrase; None where nobody can answer."""
    return getpass.getpass(prompt) if sys.stdin.isatty() else None


def load(path: Path, ask: Callable[[str], str | None] = ask_on_terminal) -> Identity:
    """Read a private key, with the passphrase of the environment or of a person.

    Raises:
        Refused: `KEY_UNREADABLE`, `KEY_TYPE` or `PASSPHRASE`.
    """
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    try:
        return Identity.load(path, passphrase)
    except Refused as error:
        if error.code is not Code.PASSPHRASE or passphrase is not None:
            raise
        answer = ask(f"Passphrase for {path}: ")
        if answer is None:
            raise
        return Identity.load(path, answer)


def create(path: Path, ask: Callable[[str], str | None] = ask_on_terminal) -> Identity:
    """Make a new key; the environment's or a person's passphrase protects it.

    Raises:
        Refused: `KEY_EXISTS`, or `PASSPHRASE` if a person's two answers differ.
    """
    if path.exists():
        raise Refused(Code.KEY_EXISTS, f"There is a key at {path} already.", "Move it away first.")
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    if passphrase is None:
        passphrase = ask("Passphrase for the new key (empty for none): ")
        if passphrase and ask("The same passphrase again: ") != passphrase:
            raise Refused(Code.PASSPHRASE, "The two passphrases differ.", "Run the command again.")
    identity = Identity.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    identity.save(path, passphrase or None)
    return identity
