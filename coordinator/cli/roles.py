"""The verbs of roles: who may say which release is the newest, and how their keys are replaced."""

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.options import JsonOption, ReasonOption, WorkspaceOption
from coordinator.cli.output import PROCESSES, now, opened_workspace, table
from protocol.errors import Code, Refused, from_os_error
from protocol.programs import print_json, say, with_flags_of

if TYPE_CHECKING:
    from coordinator.workspace.context import Opened
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.role_keys import Change
    from protocol.roles.metadata import Keys
    from protocol.signing import Identity

roles = typer.Typer(help="Show and sign who says which release is the newest.", no_args_is_help=True)
_PANEL, _HELP = "Roles", "See: greylag-coordinator roles --help"


def _flag(text: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=_PANEL, **options)


FileArgument = Annotated[Path, typer.Argument(help="The metadata, JSON.")]


def people(
    *,
    root_key: Annotated[
        list[str] | None, _flag("Key of a person who may replace keys, 64 hexadecimal digits; repeatable.")
    ] = None,
    root_threshold: Annotated[int, _flag("How many root keys must sign.", min=1)] = 1,
    release_key: Annotated[list[str] | None, _flag("Key of a person who may sign releases, likewise.")] = None,
    release_threshold: Annotated[int, _flag("How many release keys must sign.", min=1)] = 1,
) -> None:
    """Flags of keys that lie elsewhere."""


def one_machine(*, single: Annotated[bool, _flag("Make all keys here, for one machine.", "--single")] = False) -> None:
    """The flag of a pool whose keys lie in one place."""


def take_founders(flags: dict[str, Any]) -> "dict[str, Keys]":
    """Take which keys lie elsewhere, by role, out of the flags of a verb that makes roles.

    Raises:
        Refused: `SETTINGS_INVALID` unless either people or one machine hold the root, or as `take_people`.
    """
    single, roots, releases = flags.pop("single"), flags["root_key"], flags["release_key"]
    if single and (roots or releases):
        raise Refused(Code.SETTINGS_INVALID, "With --single no key lies elsewhere.", "Give --single alone, or keys.")
    if not single and not roots:
        what = "Nobody is named who may replace the pool's keys."
        hint = "Give --root-key once a person or, to try a pool on one machine, --single."
        raise Refused(Code.SETTINGS_INVALID, what, hint)
    return take_people(flags)


def take_people(flags: dict[str, Any]) -> "dict[str, Keys]":
    """Take the keys of `people` out of a verb's flags, by role.

    Raises:
        Refused: `SETTINGS_INVALID` for a threshold that cannot be met, or a code of a key.
    """
    from protocol.roles.metadata import Keys
    from protocol.signing import PublicKey

    found = {}
    for role, name in (("root", "root"), ("targets", "release")):
        texts, threshold = flags.pop(f"{name}_key"), flags.pop(f"{name}_threshold")
        if texts:
            found[role] = Keys(tuple(map(PublicKey.from_hex, texts)), threshold)
            found[role].check(role)
    return found


def say_who_signs(place: "CoordinatorWorkspace") -> None:
    """Tell an operator what the keys of a new pool mean, and what is to be done first."""
    draft = place.roles / "root-1.json"
    if draft.exists():
        say(f"Nobody follows the pool yet: have the holders of root keys sign {draft}, each with")
        say("  greylag-coordinator roles sign root-1.json --key THEIR.KEY")
        say(f"and publish what they send back with: greylag-coordinator roles publish root-1.json -w {place.folder}")
        return
    say(f"Warning: every key of this pool lies in {place.folder.resolve()}; whoever copies it is the coordinator.")
    say(f"Keep {place.roles / 'root.key'} elsewhere: with it alone stolen keys can be replaced.")


@roles.command("found")
@with_flags_of(one_machine, people)
def roles_found(*, workspace: WorkspaceOption = Path(), **founders: Any) -> None:
    """Give roles to a pool that was made before there were any.

    Example: greylag-coordinator roles found --single
    """
    from coordinator.workspace.role_keys import found_roles

    named = take_founders(founders)
    with opened_workspace(workspace) as open_:
        secret = open_.keyring.passphrase()
        found_roles(open_.workspace, open_.pool, open_.identity, named, passphrase=secret, now=now())
        open_.roles.level(now=now())
    say_who_signs(open_.workspace)


@roles.command("show")
def roles_show(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """Show keys of every role and duty, and the fingerprint by which readers may name the first root.

    Example: greylag-coordinator roles show --json
    """
    from tuf.api.metadata import Root

    from coordinator.workspace.roles import ROLES
    from protocol.documents import Duty, timestamp
    from protocol.roles.metadata import fingerprint, operators_of, read

    with opened_workspace(workspace, signs=False) as open_:
        root, row = open_.roles.root(), open_.registry.releases.find()
        seen = {name: open_.roles.newest(role) for name, role in ROLES.items()}
        if root is None:
            raise Refused(Code.STATE_CHANGE, "The first root waits for signatures, or there is none.", _HELP)
        first = fingerprint(read(open_.roles.show("root", 1, now=now()), Root))
        duties, deciders = {duty.value: open_.pool.key(duty).hex for duty in Duty}, operators_of(root.signed)
    rows: list[dict[str, Any]] = [
        {
            "role": name, "keys": [root.signed.keys[keyid].keyval["public"] for keyid in role.keyids],
            "threshold": role.threshold, "version": (part := seen[name]) and part.signed.version,
            "expires": part and timestamp(part.signed.expires),
        }
        for name, role in root.signed.roles.items()
    ]  # fmt: skip
    named, newest = seen["targets"].signed.version if seen["targets"] else 0, row.number if row else 0
    operators = {"keys": [key.hex for key in deciders.keys], "threshold": deciders.threshold} if deciders else None
    if as_json:
        said = {"root": first, "roles": rows, "duties": duties, "operators": operators}
        print_json({**said, "named": named, "newest": newest})
        return
    table(("role", "must sign", "of keys", "version", "expires"), (
        (each["role"], each["threshold"], " ".join(key[:16] for key in each["keys"]), each["version"], each["expires"])
        for each in rows
    ))  # fmt: skip
    table(("duty", "key"), duties.items())
    if deciders:
        told = " ".join(key.hex[:16] for key in deciders.keys)
        say(f"{deciders.threshold} of the operators {told} must sign for what is let in.")
    say(f"The first root has fingerprint {first}.")
    if named < newest:
        say(f"Readers are at release {named}; release {newest} waits for signatures: roles draft-release")


@roles.command("draft-root")
@with_flags_of(people)
def roles_draft_root(
    *,
    file: FileArgument,
    new_keys: Annotated[
        bool, _flag("Replace the coordinator's keys, all but those of root, by new ones of their own.", "--new-keys")
    ] = False,
    new_key: Annotated[
        list[str] | None, _flag("Replace one: targets, online, log, orders or releases; repeatable.")
    ] = None,
    signer_key: Annotated[
        list[str] | None, _flag("Replace one by a key behind a signer, NAME=64 digits; repeatable.")
    ] = None,
    operator: Annotated[
        list[str] | None, _flag("Key of a person who must sign for what is let in, 64 digits; repeatable.")
    ] = None,
    operator_threshold: Annotated[int, _flag("How many operators must sign.", min=1)] = 1,
    workspace: WorkspaceOption = Path(),
    **others: Any,
) -> None:
    """Write the next root: the same keys for another year, or others; root keys that lie here sign it.

    Example: greylag-coordinator roles draft-root root-2.json --new-keys
    """
    from coordinator.workspace.role_keys import draft_root
    from protocol.roles.metadata import Keys
    from protocol.signing import PublicKey

    named = take_people(others)
    with opened_workspace(workspace, signs=False) as open_:
        change = _change(open_, new_key or [], signer_key or [], every=new_keys)
        if operator:
            members = Keys(tuple(map(PublicKey.from_hex, operator)), operator_threshold)
            change = change._replace(operators=members)
        draft = draft_root(open_.keyring, open_.roles.root(), open_.pool, named, change, now=now())
    _write(file, draft.to_bytes())
    say(f"{file} is root {draft.signed.version}; publish it once enough keys of this root and the last have signed.")


def _change(open_: "Opened", fresh: Sequence[str], named: Sequence[str], *, every: bool) -> "Change":
    """Read which of the coordinator's keys are to be replaced (`SETTINGS_INVALID`, or a code of a key)."""
    from coordinator.workspace.role_keys import LOG_BEGINS, REPLACED, Change
    from protocol.documents import LogHead
    from protocol.signing import PublicKey

    elsewhere = {name: key for name, _, key in (each.partition("=") for each in named)}
    if unknown := {*fresh, *elsewhere} - set(REPLACED):
        what = f"There is no key {min(unknown)!r:.80} to replace."
        raise Refused(Code.SETTINGS_INVALID, what, f"Name one of {', '.join(REPLACED)}.")
    if "targets" in elsewhere:
        raise Refused(Code.SETTINGS_INVALID, "The key of role targets is named by --release-key.", _HELP)
    head = open_.checkpoints.check()  # not signed anew: the key may be lost
    return Change(
        (frozenset(REPLACED) if every else frozenset(fresh)) - set(elsewhere),
        {name: PublicKey.from_hex(key) for name, key in elsewhere.items()},
        LogHead(size=head.size, root=head.root.hex()) if head else LOG_BEGINS,
    )


@roles.command("draft-release")
def roles_draft_release(file: FileArgument, *, workspace: WorkspaceOption = Path()) -> None:
    """Write for people to sign that the newest release is the newest.

    Example: greylag-coordinator roles draft-release release.json
    """
    with opened_workspace(workspace) as open_:
        draft = open_.roles.draft_targets()
    _write(file, draft.to_bytes())
    say(f"{file} names release {draft.signed.version}; publish it once enough release keys have signed.")


@roles.command("sign")
def roles_sign(
    file: FileArgument,
    *,
    key: Annotated[str, typer.Option(help="Private key, PEM or OpenSSH; or 64 digits=URI for one behind a signer.")],
) -> None:
    """Add a signature to metadata or to an operators' act, on any machine; passphrase or PIN: GREYLAG_KEY_PASSPHRASE.

    Example: greylag-coordinator roles sign root-2.json --key ada.key
    """
    from coordinator.workspace.roles import read_any
    from protocol.documents import timestamp
    from protocol.roles.acts import countersign_act
    from protocol.roles.metadata import sign

    identity, raw = _identity(key), _read(file)
    if b'"payloadType"' in raw:
        raw, act = countersign_act(raw, identity)
        _write(file, raw)
        say(f"Key {identity.public.hex[:16]} signed to {act.act} {act.subject}: {act.reason}")
        return
    metadata = read_any(raw)
    sign(metadata, identity)
    _write(file, metadata.to_bytes())
    part = metadata.signed
    say(f"Key {identity.public.hex[:16]} signed {part.type} {part.version}, valid until {timestamp(part.expires)}.")


@roles.command("decide")
def roles_decide(
    verb: Annotated[str, typer.Argument(help="accept, unblock, promote, approve, recover or invite.")],
    subject: Annotated[
        str, typer.Argument(help="The whole digest, or the key, 64 digits; for an invite, the pool's digest.")
    ],
    file: Annotated[Path, typer.Argument(help="Where to write the act.")],
    *,
    pool: Annotated[Path, typer.Option(help="The pool's document, pool.dsse.json.")],
    key: Annotated[str, typer.Option(help="An operator's private key, as for `roles sign`.")],
    reason: ReasonOption,
    days: Annotated[int, typer.Option(min=1, max=90, help="For how long it may be carried out.")] = 14,
) -> None:
    """Sign, on any machine, that something is let in; others add theirs by `roles sign`, the verb takes it by --act.

    Example: greylag-coordinator roles decide accept DIGEST a.json --pool pool.dsse.json --key a.key --reason "Good."
    """
    from protocol.documents import read_pool, timestamp
    from protocol.roles.acts import VERBS, OperatorAct, sign_act
    from protocol.statement import read

    if verb not in VERBS:
        raise typer.BadParameter(f"it is one of {', '.join(VERBS)}", param_hint="VERB")
    at, of = now(), read_pool(_read(pool)).digest
    told = {"pool": of, "act": verb, "subject": subject, "reason": reason}
    told |= {"created": timestamp(at), "expires": timestamp(at + timedelta(days=days))}
    act = read(OperatorAct, told, what="The act", code=Code.REQUEST_INVALID)
    _write(file, sign_act(act, _identity(key)))
    say(f"{file} is to {verb} {subject}; others sign it with: greylag-coordinator roles sign {file} --key KEY")


@roles.command("publish")
def roles_publish(file: FileArgument, *, workspace: WorkspaceOption = Path()) -> None:
    """Show readers a root, or the release that is the newest, once enough keys have signed it.

    Stop every process first where the root gives a duty to another key.

    Example: greylag-coordinator roles publish root-2.json
    """
    from coordinator.workspace.locks import exclusive

    raw = _read(file)
    with opened_workspace(workspace, signs=False) as open_:
        changes = open_.roles.changed_duties(raw)
        for duty, key in changes.items():
            open_.keyring.get(key, f"is to have the duty {duty}")
        with exclusive(open_.workspace, *PROCESSES) if changes else nullcontext():
            part = open_.roles.publish(raw, now=now()).signed
    say(f"Readers are shown {part.type} {part.version}.")


def _identity(key: str) -> "Identity":
    from protocol.keys.passphrase import load
    from protocol.keys.signers import open_signer
    from protocol.signing import PublicKey

    public, signer, uri = key.partition("=")
    if signer and not Path(key).exists():
        return open_signer(uri, PublicKey.from_hex(public))
    return load(Path(key))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise from_os_error(error) from error


def _write(path: Path, content: bytes) -> None:
    from protocol.files.atomic import write_whole

    try:
        write_whole(path, content)
    except OSError as error:
        raise from_os_error(error) from error
