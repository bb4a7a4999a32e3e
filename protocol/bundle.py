"""The bundle: a folder that plain PEFT loads, with gates, spec, card and one signature over all.

    adapter_model.safetensors    as PEFT writes it
    adapter_config.json          derived from spec and pool (`protocol.adapter_config`)
    gates.safetensors            one float32 vector a module
    spec.json                    the expert's facts
    README.md                    model card
    bundle.dsse.json             in-toto statement over the five files above

The statement repeats the spec and adds sizes, so that a coordinator can judge a bundle by its
envelope alone, before it stores a byte. A bundle's identity is the digest of the signed payload.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from protocol import statement
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.files.atomic import sweep, write_whole
from protocol.signing import MAX_ENVELOPE_BYTES, Identity, PublicKey, Signed
from protocol.spec import ExpertSpec
from protocol.statement import Strict

BUNDLE_TYPE = "https://greylag.org/bundle/v1"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
GATES = "gates.safetensors"
SPEC = "spec.json"
CARD = "README.md"
ENVELOPE = "bundle.dsse.json"
FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES, SPEC)
"""What is signed; the envelope stands beside it."""

MAX_TEXT_BYTES = {ADAPTER_CONFIG: 1 << 18, SPEC: 1 << 20, CARD: 1 << 14}


class _Predicate(Strict):
    spec: ExpertSpec
    sizes: dict[str, Annotated[int, Field(ge=0)]] = Field(min_length=len(FILES), max_length=len(FILES))


@dataclass(frozen=True)
class SignedFile:
    """One file of a bundle by content."""

    sha256: str
    size: int
    """Size in bytes."""


@dataclass(frozen=True)
class Manifest:
    """What an envelope says about a bundle; its signature has been verified."""

    digest: str
    """Identity of the bundle: sha256 of the signed payload."""
    envelope: bytes
    spec: ExpertSpec
    files: Mapping[str, SignedFile]

    @property
    def signer(self) -> PublicKey:
        """The contributor's key."""
        return PublicKey.from_hex(self.spec.contributor)

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose every byte was checked against its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Identity of the bundle."""
        return self.manifest.digest

    @property
    def spec(self) -> ExpertSpec:
        """The expert's facts."""
        return self.manifest.spec


def read_manifest(envelope: bytes) -> Manifest:
    """Read and verify an envelope on its own.

    The spec names the contributor's key, and that key must have signed; whether the key is known to
    anyone is for the caller to ask.

    Raises:
        Refused: `ENVELOPE_SCHEMA`, `UNSUPPORTED_STATEMENT`, `SPEC_INVALID`, `FILE_MISSING`,
            `FILE_NOT_ALLOWED`, `TOO_LARGE`, `SIGNER_MISMATCH` or `BAD_SIGNATURE`.
    """
    signed = Signed.parse(envelope)
    parsed = statement.parse(signed.payload, BUNDLE_TYPE)
    predicate = statement.read(_Predicate, parsed.predicate, what="The bundle's statement")
    _check_names(parsed.subjects)
    _check_names(predicate.sizes)
    for name, limit in MAX_TEXT_BYTES.items():
        if predicate.sizes[name] > limit:
            raise Refused(Code.TOO_LARGE, f"{name} is {predicate.sizes[name]} bytes; at most {limit} are taken.")
    key = PublicKey.from_hex(predicate.spec.contributor)
    if key.keyid not in signed.keyids:
        raise Refused(Code.SIGNER_MISMATCH, "The bundle names another contributor than its signer.", "Sign it again.")
    signed.verify(key)
    files = {name: SignedFile(parsed.subjects[name], predicate.sizes[name]) for name in FILES}
    return Manifest(signed.digest, envelope, predicate.spec, files)


def check_canonical(manifest: Manifest) -> None:
    """Refuse a bundle whose envelope, statement or spec.json is written otherwise than `pack` writes it.

    What is read is the same either way; but spaces, second signatures and defaults spelt out would be room for content
    that nobody looks at, and work at every reading.

    Raises:
        Refused: `ENVELOPE_SCHEMA` or `SPEC_INVALID`.
    """
    signed, hint = Signed.parse(manifest.envelope), "Pack it again with the coordinator's version of greylag-client."
    subjects = {name: file.sha256 for name, file in manifest.files.items()}
    sizes = {name: file.size for name, file in manifest.files.items()}
    payload = statement.build(BUNDLE_TYPE, subjects, _Predicate(spec=manifest.spec, sizes=sizes))
    if signed.payload != payload or not signed.is_canonical(manifest.envelope):
        raise Refused(Code.ENVELOPE_SCHEMA, "The bundle's statement is not written in its one canonical form.", hint)
    if manifest.files[SPEC].sha256 != hashlib.sha256(_spec_text(manifest.spec)).hexdigest():
        raise Refused(Code.SPEC_INVALID, "spec.json is not written in its one canonical form.", hint)


def pack(folder: Path, spec: ExpertSpec, identity: Identity) -> Bundle:
    """Write spec and signature into a folder that holds adapter, gates and card.

    Raises:
        Refused: `FILE_MISSING`, `FILE_NOT_ALLOWED`, `TOO_LARGE`, or `SIGNER_MISMATCH` for a spec of another identity.
    """
    for path in (folder / SPEC, folder / ENVELOPE):
        sweep(path)  # left by a kill in the middle of an earlier pack
    write_whole(folder / SPEC, _spec_text(spec))
    _check_folder(folder, {*FILES, ENVELOPE} if (folder / ENVELOPE).exists() else FILES)
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    subjects = {name: sha256_of(folder / name) for name in FILES}
    payload = statement.build(BUNDLE_TYPE, subjects, _Predicate(spec=spec, sizes=sizes))
    envelope = identity.sign(payload)
    manifest = read_manifest(envelope)
    write_whole(folder / ENVELOPE, envelope)
    return Bundle(folder, manifest)


def open_bundle(folder: Path) -> Bundle:
    """Verify a bundle on disk, byte by byte; no tensor is read.

    Raises:
        Refused: As `read_manifest`, `check_file` and `check_spec`.
    """
    if not (folder / ENVELOPE).is_file():
        raise Refused(Code.FILE_MISSING, f"{folder} holds no {ENVELOPE}.", "Give the folder of a finished bundle.")
    _check_folder(folder, {*FILES, ENVELOPE})
    if (size := (folder / ENVELOPE).stat().st_size) > MAX_ENVELOPE_BYTES:
        raise Refused(Code.TOO_LARGE, f"{ENVELOPE} is {size} bytes; at most {MAX_ENVELOPE_BYTES} are read.")
    manifest = read_manifest((folder / ENVELOPE).read_bytes())
    for name, file in manifest.files.items():
        check_file(folder / name, file)
    check_spec(folder / SPEC, manifest.spec)
    return Bundle(folder, manifest)


def check_file(path: Path, signed: SignedFile) -> None:
    """Hold a file against its signed size and digest (`SIZE_MISMATCH` or `DIGEST_MISMATCH`)."""
    if (size := path.stat().st_size) != signed.size:
        raise Refused(Code.SIZE_MISMATCH, f"{path.name} has {size} bytes; {signed.size} were signed.")
    if sha256_of(path) != signed.sha256:
        raise Refused(Code.DIGEST_MISMATCH, f"The bytes of {path.name} are not those that were signed.")


def check_spec(path: Path, spec: ExpertSpec) -> None:
    """Refuse a spec.json that says other than the signed statement (`SPEC_INVALID`)."""
    value = strict_json.loads(path.read_bytes(), what=path.name, code=Code.SPEC_INVALID)
    if statement.read(ExpertSpec, value, what=path.name) != spec:
        raise Refused(Code.SPEC_INVALID, f"{path.name} differs from the spec in the signed statement.")


def _spec_text(spec: ExpertSpec) -> bytes:
    return strict_json.dumps(spec.model_dump(mode="json"))


def sha256_of(path: Path) -> str:
    """Digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_folder(folder: Path, names: Collection[str]) -> None:
    entries = {entry.name: entry for entry in folder.iterdir()}
    for name, entry in sorted(entries.items()):
        if name not in names or entry.is_symlink() or not entry.is_file():
            raise Refused(Code.FILE_NOT_ALLOWED, f"{name!r:.200} has no place in a bundle.", "Remove it.")
    for name in names:
        if name not in entries:
            raise Refused(Code.FILE_MISSING, f"The bundle lacks {name}.")


def _check_names(found: Mapping[str, object]) -> None:
    if missing := sorted(set(FILES) - set(found)):
        raise Refused(Code.FILE_MISSING, f"The statement lacks {missing[0]}.")
    if extra := sorted(set(found) - set(FILES)):
        raise Refused(Code.FILE_NOT_ALLOWED, f"The statement names {extra[0]!r:.200}, which no bundle holds.")
