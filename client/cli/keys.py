"""The contributor's key: the verbs `keys` and `rotate-key`."""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import JsonFlag, Verb, WorkspaceFlag, at_work, open_workspace
from protocol.programs import print_json, put, say

app = typer.Typer(help="Show or make the contributor's key.", no_args_is_help=True)


@app.command(cls=Verb)
def show(*, as_json: JsonFlag = False, workspace: WorkspaceFlag = Path()) -> None:
    """Print the public key of the workspace.

    Example: greylag-client keys show
    """
    public = open_workspace(workspace).identity().public
    if as_json:
        print_json({"key": public.hex, "keyid": public.keyid, "openssh": public.openssh})
    else:
        put(f"key     {public.hex}\nkeyid   {public.keyid}\nopenssh {public.openssh}")


@app.command(cls=Verb)
def new(*, workspace: WorkspaceFlag = Path()) -> None:
    """Make a key for a workspace that has none; `init` then takes it.

    Example: greylag-client keys new
    """
    from client.workspace.paths import ClientWorkspace
    from protocol.keys import passphrase

    place = ClientWorkspace(workspace)
    with at_work(place):
        put(passphrase.create(place.root / "contributor.key").public.hex)


def rotate_key(
    *,
    lost: Annotated[
        bool, typer.Option("--lost", help="The old key is lost or stolen: the pool's operator must decide.")
    ] = False,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """Put a new key in the place of this workspace's. Run again if it was interrupted.

    The coordinator is told by a statement that both keys sign; from then on it takes in nothing more that the old key
    signed. Bundles, name and quota stay yours. What was not submitted yet is signed again here. Prints the new key.

    With --lost nobody is told: send enrolment.dsse.json to the operator, and the key that is printed by another road.

    Example: greylag-client rotate-key
    """
    from client import job
    from client.daemon.state import DaemonFolder
    from client.daemon.supervisor import exclusive
    from client.submission import rotation

    place, now = open_workspace(workspace), datetime.now(UTC)
    corner = DaemonFolder(place)
    with ExitStack() as stack:
        if corner.folder.is_dir():
            stack.enter_context(exclusive(corner))  # a daemon that runs goes on with the old key
        stack.enter_context(at_work(place))
        new = rotation.next_key(place)
        if not lost:
            rotation.announce(place, place.identity(), new, now)
        for bundle in job.sign_again(place, new, now):
            say(f"Signed {bundle.spec.name} again: it is now {bundle.digest[:12]}.")
        rotation.take_over(place, new, now)
        corner.node_key.unlink(missing_ok=True)  # the coordinator lets it in no more; the daemon makes another
    put(new.public.hex)
    if lost:
        say(
            f"Send {place.enrolment_file} to the pool's operator, and the key above by another road. There: "
            f"greylag-coordinator contributors recover {place.settings.name} enrolment.dsse.json"
        )
