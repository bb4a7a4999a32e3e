"""A fault that is planted in a signed document, and the code that it must be refused with."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from coordinator.conformance.draft import FIRST, REMOVED, Place, Unsigned, changed, dump
from protocol.errors import Code

_LETTERS = {"[": "(", "]": ")", "{": "<", "}": ">"}  # so that a name is no pattern of names
Spoil = Callable[[Unsigned], bytes]


class Flaw(NamedTuple):
    """What is wrong, how to make it so, and what must be said of it."""

    name: str
    spoil: Spoil
    code: Code


def as_text(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the text of an honest envelope."""
    return lambda source: change(dump(source.envelope))


def in_envelope(path: tuple[Place, ...], value: Any) -> Spoil:
    """Put another value into an envelope, unsigned as all there is."""
    return lambda source: dump(changed(source.envelope, path, value))


def as_payload(change: Callable[[bytes], bytes]) -> Spoil:
    """Change what is signed, and sign it."""
    return lambda source: source.signer.sign(change(source.payload))


def in_payload(path: tuple[Place, ...], value: Any) -> Spoil:
    """Put another value into a document, and sign it."""
    return lambda source: source.signed(path, value)


def at_path(root: tuple[Place, ...], code: Code, rows: Iterable[tuple[str, Any]]) -> Iterator[Flaw]:
    """Make faults of dotted paths under a root and the values there, which also name them."""
    for dotted, value in rows:
        steps = tuple(_step(word) for word in dotted.split(".")) if dotted else ()
        yield Flaw(f"{dotted}-{describe(value)}", in_payload((*root, *steps), value), code)


def describe(value: Any) -> str:
    """Name a value in a few plain letters."""
    if value is REMOVED:
        return "left-out"
    text = json.dumps(value).strip('"')
    plain = "".join(_LETTERS.get(letter, letter if letter.isalnum() or letter in "._+-" else "~") for letter in text)
    return (plain if len(plain) <= 24 else f"{plain[:16]}..{len(text)}") or "empty"  # noqa: PLR2004


def _step(word: str) -> Place:
    return FIRST if word == "*" else int(word) if word.isdigit() else word
