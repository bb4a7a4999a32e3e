"""The verbs about who may submit: `contributors` and `invites`."""

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.options import ActOption, JsonOption, ReasonOption, WorkspaceOption
from coordinator.cli.output import fields, now, opened_workspace, show_rows
from protocol.errors import Code, Refused
from protocol.programs import print_json, put, say

if TYPE_CHECKING:
    from coordinator.registry.enrolment.invites import Invited

contributors = typer.Typer(help="Show, approve, revoke and recover contributors' keys.", no_args_is_help=True)
invites = typer.Typer(help="Make, show and revoke invites for new keys.", no_args_is_help=True)

WhoArgument = Annotated[str, typer.Argument(help="Name or key.")]
_MOST_USES, _MOST_DAYS = 10_000, 3650
_LONGEST_NOTE = 200


@contributors.command("ls")
def contributors_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every contributor, with the key in force.

    Example: greylag-coordinator contributors ls
    """
    shown = ("name", "state", "enrolled", "key")
    with opened_workspace(workspace) as open_:
        keys = open_.registry.contributors.keys()
        rows = [fields(row, *shown, "invite") | {"key": keys[row.key]} for row in open_.registry.contributors.all()]
    show_rows("contributors", shown, rows, as_json=as_json)


@contributors.command("nodes")
def contributors_nodes(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every contributor's daemon, and what its machine says of itself; --json gives the evidence whole.

    Evidence of a trusted platform is only carried here. Whoever appraises it checks that the platform signed the
    challenge, which is the node's alone.

    Example: greylag-coordinator contributors nodes --json
    """
    from coordinator.fleet.records.fleet import Fleet
    from protocol.fleet.attestation import challenge
    from protocol.fleet.node_key import read_binding
    from protocol.signing import PublicKey

    shown = ("contributor", "state", "bound", "fingerprint", "attestation")
    rows = []
    with opened_workspace(workspace) as open_:
        for node, name in Fleet(open_.registry).nodes.all():
            said = read_binding(node.envelope)
            row = {"contributor": name, **fields(node, "state", "bound", "fingerprint")}
            told = said.attestation
            row |= {"attestation": told.kind if told else "", "evidence": told.evidence if told else ""}
            rows.append(row | {"challenge": challenge(said.pool, PublicKey.from_hex(said.contributor), said.node)})
    show_rows("nodes", shown, rows, as_json=as_json)


@contributors.command("approve")
def contributors_approve(who: WhoArgument, *, act: ActOption = None, workspace: WorkspaceOption = Path()) -> None:
    """Let a key, given in full or by its name, submit.

    Example: greylag-coordinator contributors approve ada
    """
    _set_contributor(workspace, who, "active", act)


@contributors.command("revoke")
def contributors_revoke(who: WhoArgument, *, workspace: WorkspaceOption = Path()) -> None:
    """Let a key submit no more; what was let in already stays until it is yanked (`experts yank`).

    Example: greylag-coordinator contributors revoke ada
    """
    _set_contributor(workspace, who, "revoked", None)


@contributors.command("recover")
def contributors_recover(
    name: Annotated[str, typer.Argument(help="The contributor.")],
    enrolment: Annotated[Path, typer.Argument(help="The file enrolment.dsse.json that came with the new key.")],
    *,
    reason: ReasonOption,
    act: ActOption = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Let a contributor's new key take the place of one that is lost or stolen, by your signed decision.

    Make sure by another road that the key is the contributor's: it is printed. Whoever is revoked stays so until
    `contributors approve`.

    Example: greylag-coordinator contributors recover ada enrolment.dsse.json --reason "The laptop was stolen."
    """
    from coordinator.workspace.deciding import decided
    from protocol.documents import RECOVERY_TYPE, Duty, Recovery, read_enrolment, sign, timestamp

    said, at = read_enrolment(enrolment.read_bytes()), now()
    with opened_workspace(workspace) as open_:
        if (said.name, said.pool) != (name, open_.pool.digest):
            what = f"{enrolment} presents the key of {said.name} to pool {said.pool[:16]}."
            raise Refused(Code.REQUEST_INVALID, what, "Ask for the one that greylag-client rotate-key --lost wrote.")

        def decide(old: str) -> bytes:
            decision = Recovery(pool=said.pool, name=name, old=old, new=said.key, reason=reason, created=timestamp(at))
            return sign(RECOVERY_TYPE, {"pool": said.pool}, decision, open_.signer(Duty.LOG))

        about = [open_.registry.contributors.named(name).key]
        with decided(open_, "recover", said.key, act, about=about, now=at):
            row = open_.registry.contributors.recover(said, decide=decide, reason=reason, now=at)
    put(said.key)
    say(f"This is now the key of {row.name}, who is {row.state}.")


@invites.command("make")
def invites_make(
    *,
    uses: Annotated[int, typer.Option(min=1, max=_MOST_USES, help="How many new keys it lets in.")] = 1,
    days: Annotated[int, typer.Option(min=1, max=_MOST_DAYS, help="For how long.")] = 14,
    note: Annotated[str, typer.Option(help="Whom or what it is for; nobody but you sees it.")] = "",
    act: ActOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Make an invite and print its token, which is kept nowhere: a key that brings it is active at once.

    Example: greylag-coordinator invites make --uses 5 --days 30 --note "the hospitals of the north"
    """
    from coordinator.workspace.deciding import decided

    if len(note) > _LONGEST_NOTE or not note.isprintable():
        raise typer.BadParameter(f"it is one line of at most {_LONGEST_NOTE} letters", param_hint="--note")
    with opened_workspace(workspace) as open_:
        if open_.pool.spec.policy.enrolment == "open":
            what, hint = "The pool takes any key, so nobody needs an invite.", "Tell people the pool's address."
            raise Refused(Code.SETTINGS_INVALID, what, hint)
        at = now()
        with decided(open_, "invite", open_.pool.digest, act, now=at):
            token, row = open_.registry.invites.make(uses=uses, expires=at + timedelta(days=days), note=note, now=at)
    if as_json:
        print_json({"token": token, **fields(row, "name", "uses", "expires", "note")})
    else:
        put(token)
    say(f"It lets {uses} in until {row.expires}. Hand it over by a road that you trust: greylag-client init --invite")


@invites.command("ls")
def invites_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every invite, and who came by it.

    Example: greylag-coordinator invites ls
    """
    with opened_workspace(workspace) as open_:
        rows = [_invite(each) for each in open_.registry.invites.all()]
    shown = ("name", "state", "used", "uses", "expires", "contributors", "note")
    show_rows("invites", shown, rows, as_json=as_json)


@invites.command("revoke")
def invites_revoke(
    name: Annotated[str, typer.Argument(help="The token's first eight digits.")], *, workspace: WorkspaceOption = Path()
) -> None:
    """Let nobody in by an invite any more; who came by it stays until `contributors revoke`.

    Example: greylag-coordinator invites revoke 3f9a0c21
    """
    with opened_workspace(workspace) as open_:
        open_.registry.invites.revoke(name, now=now())
    say(f"The invite {name} is revoked.")


def _invite(invited: "Invited") -> dict[str, Any]:
    told = {"state": invited.state(now()), "used": len(invited.contributors), "contributors": invited.contributors}
    return fields(invited.invite, "name", "uses", "made", "expires", "note") | told


def _set_contributor(folder: Path, who: str, state: str, act: Path | None) -> None:
    from coordinator.workspace.deciding import decided

    with opened_workspace(folder) as open_:
        found, let = open_.registry.contributors.named(who), state == "active"
        key = open_.registry.contributors.keys()[found.key]
        with decided(open_, "approve", key, act, about=[found.key], now=now()) if let else nullcontext():
            row = open_.registry.contributors.set_state(who, state, now=now())
    say(f"{row.name} is {state}.")
