"""Ed25519 identities and DSSE envelopes.

The envelope is DSSE (https://github.com/secure-systems-lab/dsse) as securesystemslib writes and
verifies it. Everything the library lets through is closed here: unknown fields, other spellings of
base64, more than one signature per key, and public keys of small order. An envelope can be
re-encoded without breaking its signature, so a document's identity is the digest of its *payload*.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHPrivateKeyTypes,
    load_pem_private_key,
    load_ssh_private_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Signature, Signer, SSlibKey

from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.files.atomic import write_secret

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_SIGNATURES = 8
MAX_ENVELOPE_BYTES = 1 << 20

# y-coordinates (little-endian, sign bit cleared) of the eight points of small order and their
# non-canonical spellings, which OpenSSL accepts too; one signature by such a key fits any message.
# Source: C. Cremers and D. Jackson, "Prime, Order Please!", CSF 2019, and libsodium's block list.
_SMALL_ORDER_Y = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key, the 32 bytes of RFC 8032, section 5.1.5, that passed the small-order check."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:  # noqa: PLR2004 - RFC 8032
            what = f"An Ed25519 public key has 32 bytes; this one has {len(self.raw)}."
            raise Refused(Code.KEY_TYPE, what, "Copy it as its owner shows it: 64 hexadecimal digits.")
        if self.raw[:31] + bytes([self.raw[31] & 0x7F]) in _SMALL_ORDER_Y:
            raise Refused(Code.WEAK_KEY, "The public key is of small order.", "Make a new key.")

    @classmethod
    def from_hex(cls, text: str) -> "PublicKey":
        """Read 64 hexadecimal digits."""
        try:
            return cls(bytes.fromhex(text))
        except ValueError as error:
            what = "A public key is written as 64 hexadecimal digits."
            raise Refused(Code.KEY_TYPE, what, "Copy it as its owner shows it.") from error

    @property
    def hex(self) -> str:
        """The raw bytes as 64 hexadecimal digits: the form kept in documents and rows."""
        return self.raw.hex()

    @property
    def keyid(self) -> str:
        """The key's identifier in envelopes (securesystemslib's default: sha256 of the key's canonical form)."""
        return self.sslib.keyid

    @property
    def openssh(self) -> str:
        """The key in OpenSSH's one-line format."""
        return self._key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Tell whether a bare Ed25519 signature over a message is the key's; what it means, the message must say."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @property
    def _key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw)

    @property
    def sslib(self) -> SSlibKey:
        """The key as securesystemslib and python-tuf have it."""
        return SSlibKey.from_crypto(self._key)


def read_private_key(path: Path, passphrase: str | None = None) -> PrivateKeyTypes | SSHPrivateKeyTypes:
    """Read a private key of any kind, PKCS8 PEM or OpenSSH (`KEY_UNREADABLE`, or `PASSPHRASE`, missing or wrong)."""
    try:
        text = path.read_bytes()
    except OSError as error:
        what = f"The key {path} cannot be read: {error.strerror}."
        raise Refused(Code.KEY_UNREADABLE, what, "Check the path, or make a key.") from error
    load = load_ssh_private_key if b"BEGIN OPENSSH" in text else load_pem_private_key
    try:
        return load(text, passphrase.encode() if passphrase else None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        code, what, hint = Code.KEY_UNREADABLE, "holds no private key that can be read", "Restore it from a copy."
        if "not encrypted" in str(error):
            code, what, hint = Code.PASSPHRASE, "is not encrypted, but a passphrase was given", "Leave it out."
        elif b"ENCRYPTED" in text or "assword" in str(error) or "checksum" in str(error):
            what = "needs another passphrase" if passphrase else "needs a passphrase"
            code, hint = Code.PASSPHRASE, "Give it in GREYLAG_KEY_PASSPHRASE."
        raise Refused(code, f"{path} {what}.", hint) from error


class Identity:
    """A private key that signs. Never printed, never sent; it may lie where this program cannot read it."""

    def __init__(self, key: Ed25519PrivateKey | Signer) -> None:
        self._key = key if isinstance(key, Ed25519PrivateKey) else None
        self._signer = CryptoSigner(key) if isinstance(key, Ed25519PrivateKey) else key
        self.public = PublicKey.from_hex(str(self._signer.public_key.keyval["public"]))

    @classmethod
    def generate(cls) -> "Identity":
        """Make a new key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> "Identity":
        """Read a PKCS8 PEM or OpenSSH private key.

        Raises:
            Refused: `KEY_UNREADABLE`, `KEY_TYPE`, or `PASSPHRASE` if the passphrase is missing or wrong.
        """
        key = read_private_key(path, passphrase)
        if not isinstance(key, Ed25519PrivateKey):
            raise Refused(Code.KEY_TYPE, f"{path} is not an Ed25519 key.", "Make one with: greylag-client keys new")
        return cls(key)

    @property
    def is_held(self) -> bool:
        """Whether its private half is here, and not behind a signer."""
        return self._key is not None

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """Write PKCS8 PEM, readable by its owner alone; `FileExistsError` if there is a file already."""
        write_secret(path, self.private_bytes(passphrase))

    def private_bytes(self, passphrase: str | None = None) -> bytes:
        """Write PKCS8 PEM (`KEY_UNREADABLE` for a key that lies elsewhere)."""
        how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        return self._held().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)

    def secret(self, purpose: bytes) -> bytes:
        """Derive 32 bytes that only this key's owner knows, the same ones for ever (HKDF, RFC 5869).

        Raises:
            Refused: `KEY_UNREADABLE` for a key that lies elsewhere.
        """
        return HKDF(SHA256(), 32, salt=None, info=purpose).derive(self._held().private_bytes_raw())

    def sign_bare(self, message: bytes) -> bytes:
        """Sign a message outside of an envelope, which none may look like: those begin with `DSSEv1`."""
        return bytes.fromhex(self._signer.sign(message).signature)

    def sign(self, payload: bytes) -> bytes:
        """Put a payload into a signed envelope (JSON bytes)."""
        return self._added_to(Envelope(payload, PAYLOAD_TYPE, {}))

    def countersign(self, signed: "Signed") -> bytes:
        """Add a signature to an envelope, beside those that are there (JSON bytes)."""
        return self._added_to(signed.as_library())

    def _added_to(self, envelope: Envelope) -> bytes:
        envelope.sign(self._signer)
        return strict_json.dumps(envelope.to_dict())

    def _held(self) -> Ed25519PrivateKey:
        if self._key is None:
            what = f"The private half of key {self.public.hex[:16]} lies where only its signer can read it."
            raise Refused(Code.KEY_UNREADABLE, what, "Use a key in a file for this.")
        return self._key


@dataclass(frozen=True)
class Signed:
    """An envelope that parsed; nothing about it is verified yet."""

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    @property
    def digest(self) -> str:
        """The document's identity: sha256 of the payload in hexadecimal."""
        return hashlib.sha256(self.payload).hexdigest()

    @property
    def keyids(self) -> tuple[str, ...]:
        """Who claims to have signed."""
        return tuple(keyid for keyid, _ in self.signatures)

    @classmethod
    def parse(cls, raw: bytes, most: int = MAX_ENVELOPE_BYTES) -> "Signed":
        """Read an envelope of so many bytes at most strictly (`ENVELOPE_SCHEMA`)."""
        value = strict_json.loads(raw, what="The envelope", max_bytes=most)
        fields = _fields(value, "payload", "payloadType", "signatures")
        if fields["payloadType"] != PAYLOAD_TYPE:
            raise Refused(Code.ENVELOPE_SCHEMA, f"The envelope's payloadType is not {PAYLOAD_TYPE}.")
        entries = fields["signatures"]
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_SIGNATURES:
            raise Refused(Code.ENVELOPE_SCHEMA, f"The envelope needs 1 to {MAX_SIGNATURES} signatures.")
        signatures = tuple(_signature(entry) for entry in entries)
        if len({keyid for keyid, _ in signatures}) != len(signatures):
            raise Refused(Code.ENVELOPE_SCHEMA, "The envelope holds two signatures by one key.")
        return cls(_base64(fields["payload"]), signatures)

    def is_canonical(self, raw: bytes) -> bool:
        """Tell whether an envelope that was read as this one holds one signature and is written as `Identity.sign`."""
        return len(self.signatures) == 1 and raw == strict_json.dumps(self.as_library().to_dict())

    def verify(self, key: PublicKey) -> bytes:
        """Return the payload if a key signed it (`BAD_SIGNATURE`)."""
        try:
            self.as_library().verify([key.sslib], 1)
        except VerificationError as error:
            raise Refused(Code.BAD_SIGNATURE, f"There is no valid signature by key {key.hex[:16]}.") from error
        return self.payload

    def as_library(self) -> Envelope:
        """The same as securesystemslib has it."""
        signatures = {keyid: Signature(keyid, value.hex()) for keyid, value in self.signatures}
        return Envelope(self.payload, PAYLOAD_TYPE, signatures)


def _fields(value: Any, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise Refused(Code.ENVELOPE_SCHEMA, f"The envelope needs exactly the fields {', '.join(sorted(names))}.")
    return value


def _signature(entry: Any) -> tuple[str, bytes]:
    fields = _fields(entry, "keyid", "sig")
    keyid = fields["keyid"]
    if not isinstance(keyid, str) or len(keyid) != 64 or set(keyid) - set("0123456789abcdef"):  # noqa: PLR2004 - sha256
        raise Refused(Code.ENVELOPE_SCHEMA, "A keyid is 64 hexadecimal digits.")
    return keyid, _base64(fields["sig"])


def _base64(text: Any) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
        canonical = base64.b64encode(raw).decode() == text
    except (TypeError, ValueError, binascii.Error):
        canonical = False
    if not canonical:
        raise Refused(Code.ENVELOPE_SCHEMA, "The envelope holds base64 that is not in its one canonical form.")
    return raw
