"""The keys of a pool's roles and of its coordinator's duties: made with the pool, and replaced later."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from coordinator.workspace.keyring import Keyring
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.documents import Duties, Duty, LogHead, Pool
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.log.merkle import EMPTY_ROOT
from protocol.roles import metadata as roles
from protocol.roles.metadata import Keys
from protocol.signing import Identity, PublicKey

PEOPLE = (Root.type, Targets.type)
"""Roles whose keys may be people's."""
ONLINE = "online"
REPLACED = (Targets.type, ONLINE, *(duty.value for duty in Duty))
"""Keys that the coordinator has, and replaces without people but for the root's; those of role targets only if they lie
here."""


LOG_BEGINS = LogHead(size=0, root=EMPTY_ROOT.hex())
"""A log without an entry, which every log continues."""


class Change(NamedTuple):
    """Which of the coordinator's keys a root replaces."""

    fresh: frozenset[str] = frozenset()
    """Those for which new ones are made here."""
    named: Mapping[str, PublicKey] = MappingProxyType({})
    """Those for which a key that lies behind a signer is named."""
    head: LogHead = LOG_BEGINS
    """The log as it is, for when the one who signs for it changes."""
    operators: Keys | None = None
    """Who must sign for what is let in from now on; None for those of before, if any."""

    @property
    def names(self) -> list[str]:
        """All that change, but for the key of role targets."""
        return [name for name in REPLACED if name != Targets.type and (name in self.fresh or name in self.named)]


def found_roles(
    workspace: CoordinatorWorkspace,
    pool: Pool,
    identity: Identity,
    people: Mapping[str, Keys],
    *,
    passphrase: str | None = None,
    now: datetime,
) -> Path | None:
    """Make the keys that lie in a workspace, and its first root.

    Args:
        workspace: Where to; has no roles yet.
        pool: The pool.
        identity: The pool's key.
        people: Keys of root and targets that lie elsewhere, by role; for a role that is not there, one is made here.
        passphrase: What the keys that are made are put under.
        now: The time.

    Returns:
        The file that people must sign before it is published; None if the root is published.

    Raises:
        Refused: `WORKSPACE_EXISTS`, or `SETTINGS_INVALID` for a threshold that cannot be met.
    """
    if workspace.roles.exists():
        what = f"{workspace.roles} is there already."
        raise Refused(Code.WORKSPACE_EXISTS, what, "Replace keys with: greylag-coordinator roles draft-root")
    online, made = Identity.generate(), {role: Identity.generate() for role in PEOPLE if role not in people}
    keys = {role: Keys((key.public,)) for role, key in made.items()} | dict(people)
    keys |= dict.fromkeys((Snapshot.type, Timestamp.type), Keys((online.public,)))
    root = roles.make_root(pool, 1, keys, now=now)
    workspace.roles.mkdir()
    for name, key in {**made, ONLINE: online}.items():
        key.save(workspace.roles / f"{name}.key", passphrase)
    if Root.type in people:
        write_whole(draft := workspace.roles / "root-1.json", root.to_bytes())
        return draft
    for key in (made[Root.type], identity):
        roles.sign(root, key)
    write_whole(workspace.roles / Root.type / "1.json", root.to_bytes())
    return None


def uses(pool: Pool, root: Metadata[Root] | None) -> dict[PublicKey, list[str]]:
    """List by key what it signs now."""
    found: dict[PublicKey, list[str]] = {PublicKey.from_hex(pool.spec.coordinator): ["pool"]}
    if root is not None:
        for name, role in root.signed.roles.items():
            for keyid in role.keyids:
                found.setdefault(roles.read_key(keyid, root.signed.keys[keyid]), []).append(name)
    for duty in Duty:
        found.setdefault(pool.key(duty), []).append(duty.value)
    return found


def draft_root(
    keyring: Keyring,
    root: Metadata[Root] | None,
    pool: Pool,
    people: Mapping[str, Keys],
    change: Change,
    *,
    now: datetime,
) -> Metadata[Root]:
    """Write the next root, signed by those root keys that lie here.

    Args:
        keyring: Where keys are, and are made.
        root: The newest root.
        pool: The pool, with its duties.
        people: Keys that replace those of root or targets, by role.
        change: Which other keys are replaced.
        now: The time.

    Raises:
        Refused: `STATE_CHANGE` before there is a first root, or `SETTINGS_INVALID` for a threshold that cannot be met.
    """
    if root is None:
        what = "The first root waits for signatures."
        raise Refused(Code.STATE_CHANGE, what, "Have its holders sign the file root-1.json among the roles.")
    old, version = root.signed, root.signed.version + 1
    keys = {
        name: Keys(tuple(roles.read_key(keyid, old.keys[keyid]) for keyid in role.keyids), role.threshold)
        for name, role in old.roles.items()
    }
    held = keyring.all()
    new = {name: change.named.get(name) or keyring.make(f"{name}-{version}").public for name in change.names}
    if Targets.type in change.fresh and set(keys[Targets.type].keys) <= {identity.public for identity in held}:
        keys[Targets.type] = Keys((keyring.make(f"{Targets.type}-{version}").public,))
    if ONLINE in new:
        keys |= dict.fromkeys((Snapshot.type, Timestamp.type), Keys((new[ONLINE],)))
    duties, operators = roles.duties_of(old), change.operators or roles.operators_of(old)
    if set(new) & set(Duty):
        had = {duty.value: pool.key(duty).hex for duty in Duty}
        duties = Duties(**(had | {name: key.hex for name, key in new.items() if name in had}), head=change.head)
    draft = roles.make_root(pool, version, keys | dict(people), duties=duties, operators=operators, now=now)
    may = {*old.roles[Root.type].keyids, *draft.signed.roles[Root.type].keyids}
    for identity in held:
        if identity.public.keyid in may:
            roles.sign(draft, identity)
    return draft
