"""The keys of a pool's roles: made with the pool, and replaced later."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.roles import Roles
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.roles import metadata as roles
from protocol.roles.metadata import Keys
from protocol.signing import Identity, PublicKey

PEOPLE = (Root.type, Targets.type)
"""Roles whose keys may be people's."""
_ONLINE = "online"


def found_roles(
    workspace: CoordinatorWorkspace, pool: Pool, identity: Identity, people: Mapping[str, Keys], *, now: datetime
) -> Path | None:
    """Make the keys that lie in a workspace, and its first root.

    Args:
        workspace: Where to; has no roles yet.
        pool: The pool.
        identity: The pool's key.
        people: Keys of root and targets that lie elsewhere, by role; for a role that is not there, one is made here.
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
    for name, key in {**made, _ONLINE: online}.items():
        key.save(workspace.roles / f"{name}.key")
    if Root.type in people:
        write_whole(draft := workspace.roles / "root-1.json", root.to_bytes())
        return draft
    for key in (made[Root.type], identity):
        roles.sign(root, key)
    write_whole(workspace.roles / Root.type / "1.json", root.to_bytes())
    return None


def draft_root(
    workspace: CoordinatorWorkspace, here: Roles, pool: Pool, people: Mapping[str, Keys], *, fresh: bool, now: datetime
) -> Metadata[Root]:
    """Write the next root, signed by those root keys that lie here.

    Args:
        workspace: Where keys are made.
        here: Its roles.
        pool: The pool.
        people: Keys that replace those of root or targets, by role.
        fresh: Replace the keys that lie here, but those of root, by new ones.
        now: The time.

    Raises:
        Refused: `STATE_CHANGE` before there is a first root, or `SETTINGS_INVALID` for a threshold that cannot be met.
    """
    if (root := here.root()) is None:
        what = "The first root waits for signatures."
        raise Refused(Code.STATE_CHANGE, what, f"Have its holders sign {workspace.roles / 'root-1.json'}.")
    old, version = root.signed, root.signed.version + 1
    keys = {
        name: Keys(tuple(roles.read_key(keyid, old.keys[keyid]) for keyid in role.keyids), role.threshold)
        for name, role in old.roles.items()
    }
    held = here.identities()
    if fresh:
        mine = {identity.public for identity in held}
        if set(keys[Targets.type].keys) <= mine:
            keys[Targets.type] = Keys((_make(workspace, Targets.type, version),))
        online = Keys((_make(workspace, _ONLINE, version),))
        keys |= dict.fromkeys((Snapshot.type, Timestamp.type), online)
    new = roles.make_root(pool, version, keys | dict(people), now=now)
    may = {*old.roles[Root.type].keyids, *new.signed.roles[Root.type].keyids}
    for identity in held:
        if identity.public.keyid in may:
            roles.sign(new, identity)
    return new


def _make(workspace: CoordinatorWorkspace, name: str, version: int) -> PublicKey:
    path = workspace.roles / f"{name}-{version}.key"
    if not path.exists():  # an earlier draft may have made it
        Identity.generate().save(path)
    return Identity.load(path).public
