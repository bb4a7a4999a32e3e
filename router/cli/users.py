"""The verbs about who may ask a router over HTTP: `users`."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.programs import needs, print_json, put, say
from router.cli.options import Json, Workspace

users = typer.Typer(help="Give keys to those who ask a router over HTTP, list and revoke them.", no_args_is_help=True)

Who = Annotated[str, typer.Argument(help="What the user is called: lower-case letters, digits, dots and dashes.")]
_SHOWN = ("name", "created", "revoked", "requests", "tokens")


@users.command("add")
def users_add(
    name: Who,
    *,
    requests: Annotated[
        str, typer.Option(help="How many answers it may ask for, such as 60/minute;1000/day; default: any number.")
    ] = "",
    tokens: Annotated[
        str, typer.Option(help="How many tokens, read and to be written, such as 100000/day; default: any number.")
    ] = "",
    json_: Json = False,
    workspace: Workspace = Path(),
) -> None:
    """Let somebody ask, and print the key, which is never shown again; a router that runs knows it at once.

    From the first user on, a router takes no HTTP requests without a key.

    Example: greylag-router users add ada -w node --requests "60/minute;1000/day"
    """
    needs("limits", "serve", "A router with users")
    from router.serving.users.user_file import add_user

    user, key = add_user(workspace, name, requests=requests, tokens=tokens)
    if json_:
        print_json({"name": user.name, "key": key})
    else:
        put(key)
        say(f"Hand this key to {user.name} by a road that nobody else reads; it is not kept.")


@users.command("ls")
def users_ls(*, json_: Json = False, workspace: Workspace = Path()) -> None:
    """List users, revoked ones among them.

    Example: greylag-router users ls -w node
    """
    needs("limits", "serve", "A router with users")
    from router.serving.users.user_file import read_users

    rows = [{name: getattr(user, name) for name in _SHOWN} for user in read_users(workspace)]
    if json_:
        print_json({"users": rows})
        return
    for row in rows:
        limits = " ".join(f"{row[name]} {name}" for name in ("requests", "tokens") if row[name])
        state = f"revoked {row['revoked']}" if row["revoked"] else limits
        put(f"{row['name']:<24} {row['created']}  {state}".rstrip())


@users.command("revoke")
def users_revoke(name: Who, *, workspace: Workspace = Path()) -> None:
    """Let somebody ask no more; a router that runs knows it at once, and ends nothing that it has begun.

    Example: greylag-router users revoke ada -w node
    """
    needs("limits", "serve", "A router with users")
    from router.serving.users.user_file import revoke_user

    say(f"{revoke_user(workspace, name).name} may ask no more.")
