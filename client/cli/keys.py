"""greylag-client keys: the contributor's key."""

from pathlib import Path

import typer

from client.cli.options import JsonFlag, Verb, WorkspaceFlag, at_work, open_workspace
from protocol.programs import print_json, put

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
    from client.workspace import keys
    from client.workspace.paths import ClientWorkspace

    place = ClientWorkspace(workspace)
    with at_work(place):
        put(keys.create(place.root / "contributor.key").public.hex)
