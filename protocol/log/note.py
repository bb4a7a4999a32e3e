"""Signed notes (https://c2sp.org/signed-note) with Ed25519 signatures and cosignatures (https://c2sp.org/tlog-cosignature).

A note is a text that ends with a newline, an empty line, and a line for each signature. A signature line names its key
by a name and four bytes of a hash, which tell keys apart and prove nothing: who reads a note brings the keys.
"""

import base64
import binascii
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from hashlib import sha256

from protocol.errors import Code, Refused
from protocol.signing import Identity, PublicKey

MAX_NOTE_BYTES = 1 << 14
MAX_NOTE_SIGNATURES = 64
_ID_BYTES, _TIME = 4, struct.Struct(">Q")
_LINE = re.compile("— ([^ ]+) ([A-Za-z0-9+/]+={0,2})")


class SignatureType(IntEnum):
    """What a key's signatures mean; part of its identifier."""

    LOG = 1
    """Whoever keeps the log signs its text."""
    WITNESS = 4
    """A witness signs a time and the text."""


@dataclass(frozen=True)
class NoteKey:
    """A key under a name, as whoever reads notes knows it."""

    name: str
    public: PublicKey
    type: SignatureType

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 200 or "+" in self.name or not self.name.isprintable() or " " in self.name:  # noqa: PLR2004 - long enough for any
            what = f"{self.name!r:.80} cannot be the name of a key."
            raise Refused(Code.SETTINGS_INVALID, what, "Take one like witness.example.org/w1, without space or plus.")

    @property
    def identifier(self) -> bytes:
        """Four bytes that, with the name, tell the key from others."""
        return sha256(f"{self.name}\n".encode() + self._typed).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.identifier.hex()}+{base64.b64encode(self._typed).decode()}"

    @classmethod
    def parse(cls, text: str) -> "NoteKey":
        """Read a key as it is written by `str` (`KEY_TYPE`, `WEAK_KEY` or `SETTINGS_INVALID`)."""
        name, _, rest = text.partition("+")
        identifier, _, encoded = rest.partition("+")
        try:
            typed = base64.b64decode(encoded, validate=True)
            found = cls(name, PublicKey(typed[1:]), SignatureType(typed[0] if typed else 0))
        except ValueError as error:
            raise _no_key(text) from error
        if str(found) != f"{name}+{identifier}+{encoded}":
            raise _no_key(text)
        return found

    @property
    def _typed(self) -> bytes:
        return bytes([self.type]) + self.public.raw


@dataclass(frozen=True)
class Note:
    """A note that parsed; nothing about it is verified yet."""

    text: str
    signatures: tuple[tuple[str, bytes], ...]
    """Each by its key's name, with the key's identifier in front."""

    @classmethod
    def parse(cls, raw: bytes) -> "Note":
        """Read a note strictly (`SPEC_INVALID`)."""
        if len(raw) > MAX_NOTE_BYTES:
            raise malformed(f"it has {len(raw)} bytes, and at most {MAX_NOTE_BYTES} are read")
        try:
            whole = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise malformed("it is not UTF-8") from error
        if any(letter < " " and letter != "\n" for letter in whole):
            raise malformed("it holds a control character")
        text, gap, tail = whole.rpartition("\n\n")
        lines = tail.split("\n")
        if not gap or not text or lines.pop() != "" or not 1 <= len(lines) <= MAX_NOTE_SIGNATURES:
            raise malformed("it is not a text, an empty line and lines of signatures")
        return cls(text + "\n", tuple(map(_signature, lines)))

    def encode(self) -> bytes:
        """Inverse of `parse`."""
        lines = (f"— {name} {base64.b64encode(signature).decode()}\n" for name, signature in self.signatures)
        return f"{self.text}\n{''.join(lines)}".encode()

    def signed_by(self, key: NoteKey) -> bool:
        """Tell whether a key claims to have signed."""
        return bool(self._of(key))

    def verify(self, key: NoteKey) -> datetime | None:
        """Refuse a note that a key has not signed; return when a witness did (`BAD_SIGNATURE`)."""
        claimed, at = self._of(key), None
        for signature in claimed:
            bare, message = signature, self.text.encode()
            if key.type is SignatureType.WITNESS:
                if len(signature) < _TIME.size:
                    raise _bad_signature(key)
                (seconds,) = _TIME.unpack(signature[: _TIME.size])
                bare, message = signature[_TIME.size :], _timed(self.text, seconds)
                at = _moment(seconds, key)
            if not key.public.has_signed(message, bare):
                raise _bad_signature(key)
        if not claimed:
            raise _bad_signature(key)
        return at

    def with_signatures(self, others: Iterable[tuple[str, bytes]]) -> "Note":
        """Add signatures of others; one that is there already is not added again."""
        return Note(self.text, tuple(dict.fromkeys((*self.signatures, *others))))

    def _of(self, key: NoteKey) -> list[bytes]:
        return [
            signature[_ID_BYTES:]
            for name, signature in self.signatures
            if name == key.name and signature[:_ID_BYTES] == key.identifier
        ]


def sign_note(text: str, name: str, identity: Identity) -> Note:
    """Sign a text that ends with a newline, as the log of some name."""
    key = NoteKey(name, identity.public, SignatureType.LOG)
    return Note(text, ((name, key.identifier + identity.sign_bare(text.encode())),))


def cosign(note: Note, name: str, identity: Identity, *, now: datetime) -> Note:
    """Add a witness's signature to a note."""
    key, seconds = NoteKey(name, identity.public, SignatureType.WITNESS), int(now.timestamp())
    signature = _TIME.pack(seconds) + identity.sign_bare(_timed(note.text, seconds))
    return note.with_signatures([(name, key.identifier + signature)])


def malformed(why: str) -> Refused:
    """Say why a note cannot be read (`SPEC_INVALID`)."""
    return Refused(Code.SPEC_INVALID, f"The checkpoint is malformed: {why}.", "Tell the pool's operator.")


def _timed(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _moment(seconds: int, key: NoteKey) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise _bad_signature(key) from error


def _signature(line: str) -> tuple[str, bytes]:
    if (found := _LINE.fullmatch(line)) is None:
        raise malformed("a line of its signatures is none")
    try:
        signature = base64.b64decode(found[2], validate=True)
    except binascii.Error as error:
        raise malformed("a signature is not in base64") from error
    if len(signature) <= _ID_BYTES or base64.b64encode(signature).decode() != found[2]:
        raise malformed("a signature is not in base64")
    return found[1], signature


def _bad_signature(key: NoteKey) -> Refused:
    return Refused(Code.BAD_SIGNATURE, f"The checkpoint has no valid signature by {key.name}.", "Tell its operator.")


def _no_key(text: str) -> Refused:
    hint = "Copy it as its owner shows it: NAME+8 digits+base64."
    return Refused(Code.KEY_TYPE, f"{text!r:.80} is no key of a log or of a witness.", hint)
