"""OpenSSF Model Signing: one `model.sig` over every file of a model's folder, for those who know nothing of pools.

The format is that of the library `model-signing` 1.x (https://github.com/sigstore/model-transparency, predicate
https://model_signing/signature/v1.0): a Sigstore bundle v0.3 without certificate, in it a DSSE envelope, in it an
in-toto statement that lists files by sha256. `model_signing verify key MODEL --signature MODEL/model.sig --public_key
model.pub` verifies what is written here. That library takes elliptic-curve keys alone, so a model is not signed by one
of the Ed25519 keys that sign everything else.

What is read is held to more than the library holds it to: a signer cannot name paths that nobody looks at.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from pydantic import Base64Bytes, ConfigDict, Field
from pydantic.alias_generators import to_camel
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

from protocol import statement
from protocol.bundle import sha256_of
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.files.atomic import write_secret, write_whole
from protocol.signing import PAYLOAD_TYPE, read_private_key
from protocol.spec import Sha256
from protocol.statement import STATEMENT_TYPE, Strict

MODEL_SIGNATURE = "model.sig"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAX_BYTES = 1 << 26
"""Of a signature: a file takes 150 bytes of it."""


class ModelVerifier:
    """The public key of who signs models."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = SSlibKey.from_crypto(key)
        self.pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        """The key as its file holds it."""
        self.hint = hashlib.sha256(self.pem).hexdigest()
        """By which a signature says whose it is."""

    @classmethod
    def load(cls, path: Path) -> "ModelVerifier":
        """Read a public key, PEM (`KEY_UNREADABLE`, or `KEY_TYPE` for one on no curve that models are signed with)."""
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            what = f"{path} holds no public key that can be read."
            raise Refused(Code.KEY_UNREADABLE, what, "Give the file model.pub of who signed the model.") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
            raise Refused(Code.KEY_TYPE, f"{path} is no key on P-256, P-384 or P-521.", "Ask who signed the model.")
        return cls(key)

    def has_signed(self, payload: bytes, signature: bytes) -> bool:
        """Tell whether a signature over a statement is the key's."""
        try:
            self._key.verify_signature(Signature(self._key.keyid, signature.hex()), _to_sign(payload))
        except UnverifiedSignatureError:
            return False
        return True


class ModelSigner:
    """A private key that signs models, and nothing else."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = ModelVerifier(key.public_key())

    @classmethod
    def generate(cls) -> "ModelSigner":
        """Make a new key, on P-256."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> "ModelSigner":
        """Read a private key, PEM (`KEY_UNREADABLE`, `KEY_TYPE` or `PASSPHRASE`)."""
        key = read_private_key(path, passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
            hint = "Leave --signing-key out, so that one is made."
            raise Refused(Code.KEY_TYPE, f"{path} is no key on P-256, P-384 or P-521.", hint)
        return cls(key)

    def save(self, path: Path) -> None:
        """Write PKCS8 PEM, readable by its owner alone; `FileExistsError` if there is a file already."""
        write_secret(path, self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def sign(self, payload: bytes) -> bytes:
        """Sign a statement: ECDSA over DSSE's encoding, with the hash that goes with the curve."""
        return bytes.fromhex(CryptoSigner(self._key).sign(_to_sign(payload)).signature)


Item = TypeVar("Item")
_One = Annotated[tuple[Item, ...], Field(min_length=1, max_length=1)]


class _Plain(Strict):
    """What a verifier needs of a document; by the format's word, it passes over the rest."""

    model_config = ConfigDict(extra="ignore")


class _Read(_Plain):
    """The same, where names are written as protobuf writes them."""

    model_config = ConfigDict(alias_generator=to_camel)


class _Whose(_Read):
    hint: str = ""


class _Material(_Read):
    public_key: _Whose


class _Signature(_Read):
    sig: Base64Bytes


class _Envelope(_Read):
    payload: Base64Bytes
    payload_type: str
    signatures: _One[_Signature]


class _SigstoreBundle(_Read):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(_Plain):
    algorithm: Literal["sha256"] = "sha256"
    digest: Sha256
    name: str


class _Serialization(_Plain):
    method: Literal["files"] = "files"
    hash_type: Literal["sha256"] = "sha256"
    allow_symlinks: Literal[False] = False
    ignore_paths: tuple[str, ...] = (MODEL_SIGNATURE,)


class _Predicate(_Plain):
    resources: list[_Resource]
    serialization: _Serialization


class _Digest(_Plain):
    sha256: Sha256


class _Model(_Plain):
    name: str
    digest: _Digest


class _Statement(_Read):
    type_: Annotated[str, Field(alias="_type")]
    predicate_type: str
    subject: _One[_Model]
    predicate: _Predicate


def sign_model(folder: Path, signer: ModelSigner, *, name: str) -> None:
    """Write `model.sig` over every other file of a folder.

    Args:
        folder: The model.
        signer: Signs it.
        name: What the model is called; it says nothing of what is in it.

    Raises:
        Refused: `FILE_NOT_ALLOWED` for a link.
    """
    digests = _digests(folder)
    resources = [_Resource(name=path, digest=digests[path]) for path in sorted(digests, key=_order)]
    predicate = _Predicate(resources=resources, serialization=_Serialization())
    payload = statement.build(PREDICATE_TYPE, {name: _root(resources)}, predicate)
    signature = {"keyid": "", "sig": base64.b64encode(signer.sign(payload)).decode()}
    envelope = {
        "payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": [signature],
    }  # fmt: skip
    material = {"publicKey": {"hint": signer.public.hint}, "tlogEntries": []}
    document = {"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
    write_whole(folder / MODEL_SIGNATURE, strict_json.dumps(document))


def verify_model(folder: Path, key: ModelVerifier) -> dict[str, str]:
    """Hold a folder against its `model.sig`, every byte, and return what it holds: sha256 by name.

    Every file but the signature must be listed, also those that the signer would have passed over, such as `.git`.

    Raises:
        Refused: `FILE_MISSING`, `FILE_NOT_ALLOWED`, `DIGEST_MISMATCH`, `BAD_SIGNATURE`, or `ENVELOPE_SCHEMA` for what
            is no signature of this format.
    """
    path = folder / MODEL_SIGNATURE
    if not path.is_file():
        raise Refused(Code.FILE_MISSING, f"{folder} holds no {MODEL_SIGNATURE}.", "Give the folder of a signed model.")
    signed = _signed(path, key)
    found = _digests(folder)
    if missing := sorted(signed.keys() - found.keys()):
        raise Refused(Code.FILE_MISSING, f"The model lacks {missing[0]!r:.200}.", _AGAIN)
    if extra := sorted(found.keys() - signed.keys()):
        what = f"{extra[0]!r:.200} was added to the model after it was signed."
        raise Refused(Code.FILE_NOT_ALLOWED, what, "Remove it.")
    if changed := sorted(name for name, digest in signed.items() if found[name] != digest):
        what = f"The bytes of {changed[0]!r:.200} are not those that were signed."
        raise Refused(Code.DIGEST_MISMATCH, what, _AGAIN)
    return found


_AGAIN = "Fetch the model again."


def _signed(path: Path, key: ModelVerifier) -> Mapping[str, str]:
    """Read a signature, and what it lists."""
    value = strict_json.loads(path.read_bytes(), what=MODEL_SIGNATURE, max_bytes=_MAX_BYTES)
    document = statement.read(_SigstoreBundle, value, what=MODEL_SIGNATURE, code=Code.ENVELOPE_SCHEMA)
    envelope = document.dsse_envelope
    hint = document.verification_material.public_key.hint
    if hint not in ("", key.hint) or not key.has_signed(envelope.payload, envelope.signatures[0].sig):
        raise Refused(Code.BAD_SIGNATURE, "The model was not signed by this key.", "Ask who published it.")
    what = f"The statement in {MODEL_SIGNATURE}"
    value = strict_json.loads(envelope.payload, what=what, max_bytes=_MAX_BYTES)
    said = statement.read(_Statement, value, what=what, code=Code.ENVELOPE_SCHEMA)
    types = document.media_type, envelope.payload_type, said.type_, said.predicate_type
    if types != (MEDIA_TYPE, PAYLOAD_TYPE, STATEMENT_TYPE, PREDICATE_TYPE):
        raise Refused(Code.UNSUPPORTED_STATEMENT, f"{MODEL_SIGNATURE} is of another kind or version.", "Ask for v1.0.")
    resources = said.predicate.resources
    listed = {each.name: each.digest for each in resources}
    if len(listed) != len(resources) or said.subject[0].digest.sha256 != _root(resources):
        raise Refused(Code.ENVELOPE_SCHEMA, f"{what} contradicts itself.", "Tell who published the model.")
    return listed


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused(Code.FILE_NOT_ALLOWED, f"{name!r:.200} is no file of the model's own.", "Put a copy there.")
        if path.is_file() and name != MODEL_SIGNATURE:
            digests[name] = sha256_of(path)
    return digests


def _root(resources: list[_Resource]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(each.digest) for each in resources)).hexdigest()


def _order(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts


def _to_sign(payload: bytes) -> bytes:
    return Envelope(payload, PAYLOAD_TYPE, {}).pae()
