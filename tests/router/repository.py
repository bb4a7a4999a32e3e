"""A pool's roles in memory, as python-tuf's own tests have a repository: honest unless a test meddles with them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.release import Release
from protocol.roles import metadata as roles
from protocol.roles.metadata import Keys
from protocol.signing import Identity

ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)


class Repository:
    """Shows what `files` holds, by role and version; whoever has a key of `keys` can change that.

    A timestamp is made anew whenever one is asked for, but while the repository is `frozen`.
    """

    def __init__(self, pool: Pool, identity: Identity, threshold: int = 1) -> None:
        self.pool, self.identity = pool, identity
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.threshold = threshold
        self.keys = {role: [Identity.generate() for _ in range(threshold)] for role in ROLES}
        self.files: dict[tuple[str, int], bytes] = {}
        self.versions = dict.fromkeys(ROLES, 0)
        self.frozen = False
        self.rotate()

    def show(self, role: str, version: int) -> bytes:
        if role == Timestamp.type and not self.frozen and (Snapshot.type, self.versions[Snapshot.type]) in self.files:
            self.stamp()
        try:
            return self.files[role, version or self.versions[role]]
        except KeyError:
            raise Refused(Code.RELEASE_UNKNOWN, f"There is no {role} {version}.") from None

    def rotate(self, *fresh: str) -> None:
        """Sign the next root, with fresh keys for some roles, by the keys of both."""
        before = list(self.keys[Root.type])
        self.keys |= {role: [Identity.generate() for _ in range(self.threshold)] for role in fresh}
        self.versions[Root.type] += 1
        root = roles.make_root(self.pool, self.versions[Root.type], self.public(), now=self.clock())
        self.put(root, *before, *self.keys[Root.type], *([self.identity] if root.signed.version == 1 else []))

    def public(self) -> dict[str, Keys]:
        return {role: Keys(tuple(key.public for key in keys), self.threshold) for role, keys in self.keys.items()}

    def name(self, release: Release) -> None:
        """Say that a release is the newest."""
        targets = roles.make_targets(release)
        self.put(targets)
        self.snap()

    def snap(self, version: int | None = None, **changes: Any) -> None:
        targets = self.files[Targets.type, self.versions[Targets.type]]
        number = version or self.versions[Snapshot.type] + 1
        self.put(_changed(roles.make_snapshot(number, targets, now=self.clock()), changes))
        self.stamp()

    def stamp(self, version: int | None = None, **changes: Any) -> None:
        snapshot = self.files[Snapshot.type, self.versions[Snapshot.type]]
        number = version or self.versions[Timestamp.type] + 1
        self.put(_changed(roles.make_timestamp(number, snapshot, now=self.clock()), changes))

    def put(self, metadata: Metadata[Any], *signers: Identity) -> None:
        """Sign metadata, with the role's keys unless others are given, and show it as the newest of its role."""
        role, version = metadata.signed.type, metadata.signed.version
        for signer in signers or self.keys[role]:
            roles.sign(metadata, signer)
        self.files[role, version] = metadata.to_bytes()
        self.versions[role] = version


def _changed(metadata: Metadata[Any], changes: dict[str, Any]) -> Metadata[Any]:
    for name, value in changes.items():
        setattr(metadata.signed, name, value)
    return metadata
