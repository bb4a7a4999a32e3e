"""Keeps the metadata of a pool's roles in a folder: made at every release, and the timestamp again as time goes by.

*.key                 private keys; those of root and targets may lie elsewhere, and then people sign
ROLE/VERSION.json     every version of root, targets and snapshot
timestamp.json        the newest timestamp

What is named is written before what names it, so that a kill leaves nothing that points nowhere.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from coordinator.registry.registry import Registry
from coordinator.workspace.keyring import Keyring
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.documents import Duty, Pool
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.release import read_release
from protocol.roles import metadata as roles
from protocol.roles.chain import with_duties
from protocol.signing import PublicKey

RENEWED = timedelta(hours=1)
"""Age from which on a timestamp is made again when somebody asks for it."""
ROLES: dict[str, Any] = {each.type: each for each in (Root, Targets, Snapshot, Timestamp)}
_WAIT_S = 30
_OLD = timedelta(days=10)
"""A snapshot that is valid for no longer is made again."""
Part = TypeVar("Part", Root, Targets, Snapshot, Timestamp)


class Roles:
    """The metadata of a workspace."""

    def __init__(self, workspace: CoordinatorWorkspace, registry: Registry, pool: Pool, keyring: Keyring) -> None:
        self._folder, self._lock = workspace.roles, workspace.lock("roles")
        self._registry, self._pool, self._keyring = registry, pool, keyring

    def show(self, role: str, version: int, *, now: datetime) -> bytes:
        """Return metadata of a role, the timestamp fresh (`RELEASE_UNKNOWN`)."""
        if role == Timestamp.type:
            self.level(now=now)
        path = self._path(role, version)
        if path is None or not path.is_file():
            what = f"There is no metadata of role {role[:16]!r}, version {version}."
            raise Refused(Code.RELEASE_UNKNOWN, what, "Wait until a release is signed for.")
        return path.read_bytes()

    def root(self) -> Metadata[Root] | None:
        """Return the newest root; None while the first one lacks signatures."""
        version = self._newest_root()
        return self._read(Root, version) if version else None

    def newest(self, role: type[Part]) -> Metadata[Part] | None:
        """Return what readers see of a role now."""
        if role is Root:
            version = self._newest_root()
        elif role is Timestamp:
            version = 0
        elif (stamp := self._stamp()) is None:
            return None
        else:
            version = stamp.snapshot_meta.version
            if role is Targets:
                version = self._read(Snapshot, version).signed.meta[f"{Targets.type}.json"].version
        path = self._path(role.type, version)
        return self._read(role, version) if path is not None and path.is_file() else None

    def check(self) -> None:
        """Refuse to work for a pool without roles, whose releases nobody would take.

        Raises:
            Refused: `SCHEMA_MISMATCH`, or `PASSPHRASE` if nobody opens what may be the key of role timestamp.
        """
        if not self._folder.is_dir():
            what = "This pool was made before releases had roles."
            raise Refused(Code.SCHEMA_MISMATCH, what, "Give it some with: greylag-coordinator roles found --single")
        if (root := self.root()) is not None:
            for keyid in root.signed.roles[Timestamp.type].keyids:
                self._keyring.find(roles.read_key(keyid, root.signed.keys[keyid]))

    def level(self, *, now: datetime) -> None:
        """Name the newest release, as far as the keys here allow, and see that what readers need is fresh.

        Raises:
            Refused: A code of damaged metadata.
        """
        with FileLock(self._lock, timeout=_WAIT_S):
            if (root := self.root()) is not None:
                self._level(root.signed, self.newest(Targets), now=now)

    def publish(self, raw: bytes, *, now: datetime) -> Metadata[Any]:
        """Take metadata that people have signed: the next root, or targets that name a release.

        Raises:
            Refused: `BAD_SIGNATURE` while signatures are missing, `STATE_CHANGE` if it does not follow what is here,
                `RELEASE_UNKNOWN` if it names another release than the registry holds, or a code of the metadata.
        """
        with FileLock(self._lock, timeout=_WAIT_S):
            metadata, root = read_any(raw), self.root()
            if isinstance(metadata.signed, Root):
                self._publish_root(metadata, root)
                self._pool = with_duties(self._pool, self._folder / Root.type)
                self._level(metadata.signed, self.newest(Targets), now=now)
            else:
                self._publish_targets(metadata, root)
                self._level(root.signed if root else None, metadata, now=now)
            return metadata

    def changed_duties(self, raw: bytes) -> dict[str, PublicKey]:
        """Tell which duties metadata that people have signed gives to another key, and to which."""
        new = read_any(raw).signed
        said = roles.duties_of(new) if isinstance(new, Root) else None
        after = self._pool if said is None else replace(self._pool, duties=(*self._pool.duties, said))
        return {duty.value: after.key(duty) for duty in Duty if after.key(duty) != self._pool.key(duty)}

    def draft_targets(self) -> Metadata[Targets]:
        """Write what names the newest release, for people to sign (`RELEASE_UNKNOWN`)."""
        if (row := self._registry.releases.find()) is None:
            raise Refused(Code.RELEASE_UNKNOWN, "There is no release yet.", "Wait until an expert is accepted.")
        return roles.make_targets(read_release(row.envelope, self._pool))

    def _level(self, root: Root | None, targets: Metadata[Targets] | None, *, now: datetime) -> None:
        if root is None:
            return
        row = self._registry.releases.find()
        if row is not None and (
            targets is None or targets.signed.version < row.number or not roles.is_signed(targets, root)
        ):
            draft = self.draft_targets()
            targets = draft if self._sign(draft, root) else targets
        if targets is not None and roles.is_signed(targets, root):
            self._name(root, targets, now=now)

    def _name(self, root: Root, targets: Metadata[Targets], *, now: datetime) -> None:
        """Have a snapshot name targets, and a timestamp the snapshot, unless fresh ones do or the key is elsewhere."""
        stamp, snapshot = self.newest(Timestamp), self.newest(Snapshot)
        drafts: list[Metadata[Any]] = [roles.make_snapshot(_after(snapshot, now), targets.to_bytes(), now=now)]
        if snapshot and _is_good(snapshot, root, left=_OLD, now=now) and snapshot.signed.meta == drafts[0].signed.meta:
            drafts = [snapshot]
        elif not self._sign(drafts[0], root):
            return
        drafts.append(roles.make_timestamp(_after(stamp, now), drafts[0].to_bytes(), now=now))
        fresh = roles.LIVES[Timestamp.type] - RENEWED
        if (
            stamp
            and _is_good(stamp, root, left=fresh, now=now)
            and stamp.signed.snapshot_meta == drafts[1].signed.snapshot_meta
        ):
            return
        if self._sign(drafts[1], root):
            for each in (targets, *drafts):
                self._write(each)

    def _sign(self, metadata: Metadata[Any], root: Root) -> bool:
        """Sign with the keys that lie here, and tell whether they are enough."""
        may = root.roles[metadata.signed.type].keyids
        for identity in self._keyring.all():
            if identity.public.keyid in may:
                roles.sign(metadata, identity)
        return roles.is_signed(metadata, root)

    def _publish_root(self, new: Metadata[Root], old: Metadata[Root] | None) -> None:
        version = old.signed.version + 1 if old else 1
        if new.signed.version != version:
            what = f"The root is of version {new.signed.version}; the next one here is {version}."
            raise Refused(Code.STATE_CHANGE, what, "Draft it again with: greylag-coordinator roles draft-root")
        roles.check_root(new.signed, self._pool)
        missing = [each for each in (old, new) if each and not roles.is_signed(new, each.signed)]
        if missing:
            needs = missing[0].signed.roles[Root.type].threshold
            what = f"The root lacks signatures: {needs} of the keys of version {missing[0].signed.version} must sign."
            raise Refused(Code.BAD_SIGNATURE, what, "Sign it with: greylag-coordinator roles sign FILE --key KEY")
        if old is None:
            pool_key = PublicKey.from_hex(self._pool.spec.coordinator)
            roles.sign(new, self._keyring.get(pool_key, "signs the first root beside its own keys"))
        self._write(new)

    def _publish_targets(self, new: Metadata[Targets], root: Metadata[Root] | None) -> None:
        if root is None or not roles.is_signed(new, root.signed):
            needs = root.signed.roles[Targets.type].threshold if root else "a root, and then some"
            what = f"The release lacks signatures: {needs} of role targets' keys must sign."
            raise Refused(Code.BAD_SIGNATURE, what, "Sign it with: greylag-coordinator roles sign FILE --key KEY")
        named, before = roles.named(new.signed), self.newest(Targets)
        if before is not None and named.number < before.signed.version:
            what = f"Release {named.number} was signed for, and release {before.signed.version} already is."
            raise Refused(Code.STATE_CHANGE, what, "Draft it again with: greylag-coordinator roles draft-release")
        row = self._registry.releases.find(named.number)
        if row is None:
            raise Refused(Code.RELEASE_UNKNOWN, f"There is no release {named.number} here.")
        named.check(row.envelope)

    def _stamp(self) -> Timestamp | None:
        path = self._folder / f"{Timestamp.type}.json"
        return self._read(Timestamp, 0).signed if path.is_file() else None

    def _newest_root(self) -> int:
        return max((int(path.stem) for path in (self._folder / Root.type).glob("*.json")), default=0)

    def _path(self, role: str, version: int) -> Path | None:
        if role == Timestamp.type:
            return self._folder / f"{role}.json"
        return self._folder / role / f"{version}.json" if role in ROLES else None

    def _read(self, role: type[Part], version: int) -> Metadata[Part]:
        path = self._path(role.type, version)
        if path is None:
            raise ValueError(role)
        try:
            return roles.read(path.read_bytes(), role)
        except Refused as error:
            raise Refused(error.code, f"{path} is damaged: {error.message}", "Restore it from a copy.") from error

    def _write(self, metadata: Metadata[Any]) -> None:
        path, raw = self._path(metadata.signed.type, metadata.signed.version), metadata.to_bytes()
        if path is not None and (not path.is_file() or path.read_bytes() != raw):
            write_whole(path, raw)


def read_any(raw: bytes) -> Metadata[Any]:
    """Read what people sign: a root, or targets (`SPEC_INVALID`)."""
    try:
        return roles.read(raw, Root)
    except Refused:
        return roles.read(raw, Targets)


def _is_good(metadata: Metadata[Any], root: Root, *, left: timedelta, now: datetime) -> bool:
    """Tell whether metadata is signed and valid long enough; and not too long, as after a clock that was ahead."""
    valid = metadata.signed.expires - now
    return left <= valid <= roles.LIVES[metadata.signed.type] and roles.is_signed(metadata, root)


def _after(before: Metadata[Any] | None, now: datetime) -> int:
    """Number what follows, at least by the hours since 1970: then an older copy of the folder catches up by itself."""
    return max(before.signed.version + 1 if before else 1, int(now.timestamp()) // 3600)
