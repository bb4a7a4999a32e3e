"""greylag-client daemon: answers the pool's campaigns, within the contributor's own policy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import JsonFlag, WorkspaceFlag, open_workspace
from client.libraries import quiet_libraries
from protocol.programs import print_json, put, say

if TYPE_CHECKING:
    from client.daemon.state import DaemonFolder


def daemon(
    *,
    data: Annotated[
        Path | None, typer.Option("--data", help="The private file; written into a new daemon.toml.")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Show how the daemon stands, and end.")] = False,
    allow: Annotated[int | None, typer.Option(min=1, help="Allow the campaign of this number, and end.")] = None,
    decline: Annotated[int | None, typer.Option(min=1, help="Decline the campaign of this number, and end.")] = None,
    challenge: Annotated[
        bool, typer.Option("--challenge", help="Print what a trusted platform is to sign of this daemon, and end.")
    ] = False,
    as_json: JsonFlag = False,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """Answer the pool's campaigns with what daemon.toml allows, until SIGTERM.

    Only numbers, digests and signed bundles leave this machine.

    Example: greylag-client daemon -w mine --data notes.jsonl
    """
    from client.daemon.state import DaemonFolder

    corner = DaemonFolder(open_workspace(workspace))
    if status:
        _show_status(corner, as_json=as_json)
    elif allow or decline:
        _decide(corner, allow or decline or 0, allowed=bool(allow))
    elif challenge:
        _show_challenge(corner, as_json=as_json)
    else:
        quiet_libraries(corner.workspace.settings.base, corner.workspace.settings.embedding)
        _run(corner, data)


def _show_challenge(corner: "DaemonFolder", *, as_json: bool) -> None:
    from protocol.fleet.attestation import challenge

    workspace, node = corner.workspace, corner.key()
    found = challenge(workspace.pool.digest, workspace.identity().public, node.public)
    if as_json:
        print_json({"challenge": found})
    else:
        put(found)
        say("Have the platform sign these 32 bytes, and name the file under [attestation] in daemon.toml.")


def _decide(corner: "DaemonFolder", number: int, *, allowed: bool) -> None:
    from protocol.errors import Code, Refused

    note = corner.note(f"campaign-{number}")
    if "order" not in note:  # consent is given to an order, not to a number
        raise Refused(
            Code.CAMPAIGN_UNKNOWN, f"No campaign {number} has asked for anything here.",
            "See: greylag-client daemon --status",
        )  # fmt: skip
    corner.write_note(f"campaign-{number}", note | {"allowed": allowed})
    what = "allowed; it begins when it is asked for again" if allowed else "declined"
    say(f"Campaign {number} ({note['kind']}) is {what}.")


def _run(corner: "DaemonFolder", data: Path | None) -> None:
    import signal
    import threading

    from client.daemon.policy import check_data, write_policy
    from client.daemon.supervisor import Daemon, exclusive

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with exclusive(corner):
        if data is not None and not corner.policy.exists():
            write_policy(corner.policy, data)
            say(f"Wrote {corner.policy}; it decides what campaigns may do here.")
        elif data is not None:
            check_data(corner.policy, data)
        Daemon(corner, say).run(stopped)


def _show_status(corner: "DaemonFolder", *, as_json: bool) -> None:
    from client.daemon.policy import YOURS
    from client.daemon.supervisor import status

    found = status(corner)
    if as_json:
        print_json(found)
        return
    put(f"daemon   {found['state']}, last seen {found['at'] or 'never'}")
    put(f"fleet    {found['fleet'] or 'none yet'}")
    if found["why"]:
        put(f"trouble  {found['why']}")
    for asked in found["campaigns"]:
        why = f": {asked['why']}" if asked.get("why") else ""
        put(f"campaign {asked['number']} ({asked.get('kind', 'not asked yet')}) {asked.get('state', '')}{why}")
        if asked.get("state") == "waits" and asked.get("why") == YOURS:
            say(f"         greylag-client daemon -w {corner.workspace.root} --allow {asked['number']}  (or --decline)")
