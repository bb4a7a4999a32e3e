"""Metadata of a pool's roles, as The Update Framework has them (https://theupdateframework.github.io/specification/).

- *root* names the keys of all roles and how many of each must sign. It is signed by people who keep their keys offline,
  and each version by enough keys of the version before. The first one is signed by the pool's key besides, and all of
  them name the pool, so that none serves for another pool of the same people. It says who has the coordinator's duties,
  too, in a field of its own: those keys are of no role of TUF's.
- *targets* says which release is meant, by the digest of its envelope; its version is the release's number.
- *snapshot* says which targets, and *timestamp* which snapshot; both are signed by a key that is online.

python-tuf writes, signs and reads it. What it leaves open is closed here: JSON of two meanings, keys that are no
Ed25519 keys or sign everything, the pool that is meant, and dates far away.
"""

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from protocol.documents import Duties, Pool, read_timestamp, timestamp
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.release import CLOCKS_APART, Release
from protocol.signing import MAX_SIGNATURES, Identity, PublicKey
from protocol.spec import KeyHex
from protocol.statement import Strict
from protocol.statement import read as read_document

LIVES = {Root.type: timedelta(days=365), Snapshot.type: timedelta(days=30), Timestamp.type: timedelta(days=1)}
"""How long metadata of a role is valid; targets are as long as the release that they name."""
TARGET = "release.dsse.json"
"""What targets call the release."""
_ALGORITHM, _NUMBER = "sha256", "number"
_POOL, _DUTIES, _OPERATORS = "x-greylag-pool", "x-greylag-duties", "x-greylag-operators"
_HINT = "Tell the pool's operator."
Part = TypeVar("Part", Root, Targets, Snapshot, Timestamp)


class Keys(NamedTuple):
    """Who may sign for a role, and how many of them must."""

    keys: tuple[PublicKey, ...]
    threshold: int = 1

    def check(self, role: str) -> None:
        """Refuse a threshold that cannot be met (`SETTINGS_INVALID`)."""
        count = len(set(self.keys))
        if not 1 <= self.threshold <= count <= MAX_SIGNATURES:
            what = f"Role {role} has {count} keys, of which {self.threshold} must sign."
            raise Refused(Code.SETTINGS_INVALID, what, f"Name at least so many keys, and at most {MAX_SIGNATURES}.")


class Named(NamedTuple):
    """The release that targets name."""

    number: int
    file: TargetFile

    def check(self, envelope: bytes) -> None:
        """Refuse other bytes than those that were signed for (`DIGEST_MISMATCH`)."""
        try:
            self.file.verify_length_and_hashes(envelope)
        except RepositoryError as error:
            what = f"The coordinator sent another release {self.number} than was signed for by role targets."
            raise Refused(Code.DIGEST_MISMATCH, what, _HINT) from error


def make_root(
    pool: Pool,
    version: int,
    keys: Mapping[str, Keys],
    *,
    duties: Duties | None = None,
    operators: Keys | None = None,
    now: datetime,
) -> Metadata[Root]:
    """Write a root that nobody has signed yet.

    Args:
        pool: The pool.
        version: One more than that of the root before; 1 for the first.
        keys: By role, of all four.
        duties: Whose keys have the coordinator's duties; None for what roots before it say, or else the pool's key.
        operators: Who must sign for what is let in; None to leave it to whoever is at the coordinator.
        now: The time.

    Raises:
        Refused: `SETTINGS_INVALID` for a threshold that cannot be met.
    """
    for role, members in [*keys.items(), *([("operators", operators)] if operators else [])]:
        members.check(role)
    said: dict[str, Any] = {_POOL: pool.digest}
    if duties is not None:
        said[_DUTIES] = duties.model_dump()
    if operators is not None:
        said[_OPERATORS] = {"keys": [key.hex for key in operators.keys], "threshold": operators.threshold}
    root = Root(
        version, expires=now + LIVES[Root.type], consistent_snapshot=True,
        keys={key.keyid: key.sslib for members, _ in keys.values() for key in members},
        roles={role: Role([key.keyid for key in members], threshold) for role, (members, threshold) in keys.items()},
        unrecognized_fields=said,
    )  # fmt: skip
    return Metadata(root)


def make_targets(release: Release) -> Metadata[Targets]:
    """Write what names a release, unsigned."""
    file = TargetFile.from_data(TARGET, release.envelope, [_ALGORITHM])
    file.unrecognized_fields["custom"] = {_NUMBER: release.spec.number}
    expires = read_timestamp(release.spec.expires)
    return Metadata(Targets(release.spec.number, expires=expires, targets={TARGET: file}))


def make_snapshot(version: int, targets: bytes, *, now: datetime) -> Metadata[Snapshot]:
    """Write what names signed targets, unsigned."""
    meta = {f"{Targets.type}.json": _meta(targets, Targets)}
    return Metadata(Snapshot(version, expires=now + LIVES[Snapshot.type], meta=meta))


def make_timestamp(version: int, snapshot: bytes, *, now: datetime) -> Metadata[Timestamp]:
    """Write what names a signed snapshot, unsigned."""
    return Metadata(Timestamp(version, expires=now + LIVES[Timestamp.type], snapshot_meta=_meta(snapshot, Snapshot)))


def sign(metadata: Metadata[Any], identity: Identity) -> None:
    """Add a key's signature; whether the key has a say, the root decides."""
    keyid = identity.public.keyid
    metadata.signatures[keyid] = Signature(keyid, identity.sign_bare(metadata.signed_bytes).hex())


def read(raw: bytes, role: type[Part]) -> Metadata[Part]:
    """Parse metadata of a role strictly; nothing about it is verified yet (`SPEC_INVALID`)."""
    strict_json.loads(raw, what=f"The metadata of role {role.type}", code=Code.SPEC_INVALID)
    try:
        metadata: Metadata[Part] = Metadata.from_bytes(raw)
    except RepositoryError as error:
        raise Refused(Code.SPEC_INVALID, f"The metadata of role {role.type} is malformed.", _HINT) from error
    if metadata.signed.type != role.type:
        what = f"The metadata is of role {metadata.signed.type}, not {role.type}."
        raise Refused(Code.SPEC_INVALID, what, _HINT)
    return metadata


def is_signed(metadata: Metadata[Any], root: Root) -> bool:
    """Tell whether enough keys of its role have signed."""
    try:
        root.verify_delegate(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError:
        return False
    return True


def fingerprint(root: Metadata[Root]) -> str:
    """Say in 64 digits which root it is, whoever has signed it."""
    return hashlib.sha256(root.signed_bytes).hexdigest()


def check_first(root: Metadata[Root], pool: Pool, expected: str | None = None) -> None:
    """Refuse a first root that its own keys and the pool's did not sign.

    Args:
        root: The root.
        pool: The pool.
        expected: Its fingerprint, as a person was told it.

    Raises:
        Refused: `UNTRUSTED`, `BAD_SIGNATURE`, or as `check_root`.
    """
    if expected is not None and fingerprint(root) != expected:
        what = f"The pool's root has fingerprint {fingerprint(root)[:16]}; this machine trusts {expected[:16]}."
        raise Refused(Code.UNTRUSTED, what, "Ask the operator; a pool's first root never changes.")
    if root.signed.version != 1:
        raise Refused(Code.SPEC_INVALID, "The pool's first root is not of version 1.", _HINT)
    check_root(root.signed, pool)
    key = PublicKey.from_hex(pool.spec.coordinator)
    signature = root.signatures.get(key.keyid)
    if signature is None or not is_signed(root, root.signed) or not _has_signed(key.sslib, signature, root):
        raise Refused(Code.BAD_SIGNATURE, "The pool's first root lacks a signature: its keys' or the pool's.", _HINT)


def check_root(root: Root, pool: Pool) -> None:
    """Refuse what python-tuf would take of a root.

    Raises:
        Refused: `WRONG_POOL`, `SPEC_INVALID`, `KEY_TYPE` or `WEAK_KEY`, also for what it says of duties.
    """
    if root.unrecognized_fields.get(_POOL) != pool.digest:
        raise Refused(Code.WRONG_POOL, "The root is of another pool.", _HINT)
    if not root.consistent_snapshot:
        raise Refused(Code.SPEC_INVALID, "The root does without consistent snapshots.", _HINT)
    for keyid, key in root.keys.items():
        read_key(keyid, key)
    duties_of(root)
    operators_of(root)


def duties_of(root: Root) -> Duties | None:
    """Tell whose keys have the coordinator's duties by a root (`SPEC_INVALID`, `WEAK_KEY`); None if it does not say."""
    value = root.unrecognized_fields.get(_DUTIES)
    if value is None:
        return None
    found = read_document(Duties, value, what="The root's duties")
    for key in (found.log, found.orders, found.releases):
        PublicKey.from_hex(key)
    return found


class OperatorKeys(Strict):
    """Who must sign for what is let in, as a root says it."""

    keys: tuple[KeyHex, ...]
    threshold: int


def operators_of(root: Root) -> Keys | None:
    """Tell who must sign for what is let in by a root (`SPEC_INVALID`, `WEAK_KEY`); None for whoever is there."""
    value = root.unrecognized_fields.get(_OPERATORS)
    if value is None:
        return None
    found = read_document(OperatorKeys, value, what="The root's operators")
    keys = Keys(tuple(map(PublicKey.from_hex, found.keys)), found.threshold)
    try:
        keys.check("operators")
    except Refused as error:
        raise Refused(Code.SPEC_INVALID, error.message, _HINT) from error
    return keys


def read_key(keyid: str, key: Key) -> PublicKey:
    """Take a key out of a root (`KEY_TYPE`, `WEAK_KEY`): under another id than its own, one would count twice."""
    public = PublicKey.from_hex(str(key.keyval.get("public"))) if key.keytype == "ed25519" else None
    if public is None or public.keyid != keyid or key.scheme != "ed25519":
        raise Refused(Code.KEY_TYPE, "The root holds a key that is no Ed25519 key, or not under its own id.", _HINT)
    return public


def named(targets: Targets) -> Named:
    """Tell which release targets name (`SPEC_INVALID`)."""
    file = targets.targets.get(TARGET)
    if file is None or file.custom != {_NUMBER: targets.version} or _ALGORITHM not in file.hashes:
        raise Refused(Code.SPEC_INVALID, "The metadata of role targets names no release.", _HINT)
    return Named(targets.version, file)


def check_dates(parts: Collection[Signed], *, now: datetime) -> None:
    """Refuse metadata that is valid for longer than its role may say, by the reader's clock (`RELEASE_DATES`)."""
    for part in parts:
        life = LIVES.get(part.type)
        if life is not None and part.expires > now + life + CLOCKS_APART:
            what = f"Role {part.type} is to be valid until {timestamp(part.expires)}, and for {life.days} days at most"
            raise Refused(
                Code.RELEASE_DATES,
                f"{what}; this machine's clock says {timestamp(now)}.",
                "Check the clock, then tell the operator that somebody may have the role's key.",
            )


def _meta(raw: bytes, role: Any) -> MetaFile:
    return MetaFile.from_data(read(raw, role).signed.version, raw, [_ALGORITHM])


def _has_signed(key: Key, signature: Signature, metadata: Metadata[Any]) -> bool:
    try:
        key.verify_signature(signature, metadata.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True
