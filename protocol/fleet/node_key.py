"""A daemon's own key, and the statement that ties it to its contributor.

Flower's nodes prove themselves with an ECDSA key on P-384; bundles are signed with Ed25519. Neither key may
do the other's work, so each signs the other, once, under a domain of its own: whoever holds only one of them
can bind nothing.
"""

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
    load_ssh_private_key,
)
from pydantic import StringConstraints

from protocol import statement
from protocol.documents import read_timestamp, sign, timestamp
from protocol.errors import Code, Refused
from protocol.files.atomic import write_secret
from protocol.fleet.attestation import Attestation
from protocol.signing import Identity, PublicKey, Signed
from protocol.spec import KeyHex, Sha256, Timestamp
from protocol.statement import Strict

BINDING_TYPE = "https://greylag.org/node-binding/v1"
MAX_APART_S = 300.0
"""Flower lets a node in only if their clocks differ by less, in seconds."""
_DOMAIN = b"greylag node binding v1\0"
_ECDSA = ec.ECDSA(hashes.SHA384())


class Binding(Strict):
    """A contributor's key and a node's key belong together; signed by both."""

    pool: Sha256
    contributor: KeyHex
    node: Annotated[str, StringConstraints(min_length=1, max_length=400)]
    """Public key of the node, PEM (SubjectPublicKeyInfo): the form in which Flower keeps it."""
    proof: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16,240}$")]
    """The node's signature (ECDSA, SHA-384) over domain, pool and contributor, in hexadecimal."""
    created: Timestamp
    attestation: Attestation | None = None
    """What the machine says of itself, for whoever can appraise it."""


class NodeKey:
    """A node's private key. It opens a connection and signs its binding; it never signs a bundle."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = _pem(key.public_key())

    @classmethod
    def generate(cls) -> "NodeKey":
        """Make a new key from the system's randomness."""
        return cls(ec.generate_private_key(ec.SECP384R1()))

    @classmethod
    def load(cls, path: Path) -> "NodeKey":
        """Read what `save` wrote (`KEY_UNREADABLE`, or `NODE_KEY` for a key of another kind)."""
        try:
            key = load_ssh_private_key(path.read_bytes(), None)
        except (OSError, TypeError, ValueError, UnsupportedAlgorithm) as error:
            what = f"The node's key {path} cannot be read: {type(error).__name__}."
            raise Refused(Code.KEY_UNREADABLE, what, "Remove it; the daemon makes a new one.") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
            raise Refused(Code.NODE_KEY, f"{path} is no key on P-384.", "Remove it; the daemon makes a new one.")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key in OpenSSH's format, which Flower reads; `FileExistsError` if there is a file already."""
        write_secret(path, self._key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))

    def prove(self, pool: str, contributor: PublicKey) -> str:
        """Sign a contributor's key for a pool, given by its digest."""
        return self._key.sign(_message(pool, contributor), _ECDSA).hex()


def bind(pool: str, identity: Identity, node: NodeKey, created: str, attestation: Attestation | None = None) -> bytes:
    """Tie a node's key and a contributor's key together, for the pool of a digest."""
    key = identity.public
    document = Binding(
        pool=pool, contributor=key.hex, node=node.public, proof=node.prove(pool, key), created=created,
        attestation=attestation,
    )  # fmt: skip
    return sign(BINDING_TYPE, {"pool": pool}, document, identity)


def read_binding(envelope: bytes) -> Binding:
    """Verify a binding in both directions (`BAD_SIGNATURE`, `NODE_KEY`, or any code of an envelope)."""
    signed = Signed.parse(envelope)
    document = statement.read(Binding, statement.parse(signed.payload, BINDING_TYPE).predicate, what="The binding")
    key = PublicKey.from_hex(document.contributor)
    signed.verify(key)
    node = _read_node_key(document.node)
    try:
        node.verify(bytes.fromhex(document.proof), _message(document.pool, key), _ECDSA)
    except (InvalidSignature, ValueError) as error:
        what = "The node's key did not sign the contributor's key."
        raise Refused(Code.BAD_SIGNATURE, what, "Bind them again.") from error
    return document


def check_clock(binding: Binding, *, now: datetime) -> None:
    """Refuse a binding that was signed just now by a clock that is far from this one (`CLOCKS_APART`)."""
    apart_s = (read_timestamp(binding.created) - now).total_seconds()
    if abs(apart_s) > MAX_APART_S:
        raise Refused(
            Code.CLOCKS_APART,
            f"The node's clock says {binding.created}, the coordinator's {timestamp(now)}; "
            f"they may differ by {MAX_APART_S:.0f} seconds.",
            "Set the clock by the internet's time (NTP); the daemon tries again.",
        )


def _message(pool: str, contributor: PublicKey) -> bytes:
    return _DOMAIN + bytes.fromhex(pool) + contributor.raw


def _read_node_key(pem: str) -> ec.EllipticCurvePublicKey:
    with suppress(ValueError, UnsupportedAlgorithm):
        node = load_pem_public_key(pem.encode())
        if isinstance(node, ec.EllipticCurvePublicKey) and isinstance(node.curve, ec.SECP384R1) and _pem(node) == pem:
            return node  # one key, one spelling: the text identifies the node
    raise Refused(Code.NODE_KEY, "The node's key is no public key on P-384.", "Let the daemon make a new one.")


def _pem(node: ec.EllipticCurvePublicKey) -> str:
    return node.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
