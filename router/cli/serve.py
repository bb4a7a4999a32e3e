"""greylag-router serve and up: keep a routed model running."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import Code, Refused
from protocol.programs import configure_logs, needs, print_json, put, say, with_flags_of
from router.base.progress import show_bars
from router.cli import options
from router.cli.options import Device, Json, Quantise, Workspace

if TYPE_CHECKING:
    from router.settings import ServingSettings

HTTP = "127.0.0.1:8080"
"""Where `up` answers unless told otherwise."""


@with_flags_of(options.following)
def serve(
    *,
    workspace: Workspace = Path(),
    listen: Annotated[
        str | None, typer.Option(help="host:port; port 0 takes a free one; default: that of router.toml.")
    ] = None,
    follow_interval_s: Annotated[float | None, typer.Option(help="Seconds between two looks for a release.")] = None,
    http: Annotated[
        str | None,
        typer.Option(help="host:port to answer over HTTP at, too, as OpenAI's API does; default: that of router.toml."),
    ] = None,
    http_without_keys: Annotated[
        bool | None,
        typer.Option("--http-without-keys", help="LET ANYBODY ASK over HTTP beyond loopback while there are no users."),
    ] = None,
    http_without_tls: Annotated[
        bool | None,
        typer.Option("--http-without-tls", help="SEND KEYS, QUESTIONS AND ANSWERS IN PLAIN TEXT beyond loopback."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM; needed beyond loopback.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    device: Device = None,
    quantise: Quantise = None,
    json_: Json = False,
    **flags: Any,
) -> None:
    """Keep a routed model running at the newest release, and answer over gRPC, and HTTP if asked to, until SIGTERM.

    Example: greylag-router serve -w node --listen 127.0.0.1:7444 --http 127.0.0.1:8080
    """
    from protocol.wire.grpc_server import Listen, check_listen
    from router.methods import find_allowed
    from router.settings import FILE, load, save

    def on_ready(port: int, http_port: int | None) -> None:
        if not (workspace / FILE).exists():
            save(workspace, settings)
        address, web = _with_port(settings.listen or "", port), _with_port(settings.http or "", http_port)
        if json_:
            print_json({"address": address} | ({"http": web} if web else {}))
        say(f"Answering at {address}{f' and {web}' if web else ''}; stop with Ctrl-C.")

    settings = load(
        workspace, listen=listen, http=http, http_without_keys=http_without_keys, http_without_tls=http_without_tls,
        follow_interval_s=follow_interval_s, tls_cert=tls_cert, tls_key=tls_key, device=device, quantise=quantise,
        **flags,
    )  # fmt: skip
    # Before the model, and torch, wake.
    find_allowed(settings.methods)
    check_listen(Listen(settings.listen or "", settings.tls_cert, settings.tls_key))
    configure_logs()
    if settings.http:
        _check_http(workspace, settings)
    show_bars()
    from router.serving.process import run

    run(workspace, settings, on_ready)


def _check_http(workspace: Path, settings: "ServingSettings") -> None:
    needs("uvicorn", "serve", "Answering over HTTP")
    from protocol.wire.grpc_server import Listen
    from router.serving.users.openness import Openness, check_door
    from router.serving.users.user_file import FILE

    listen = Listen(settings.http or "", settings.tls_cert, settings.tls_key)
    openness = Openness(settings.http_without_tls, settings.http_without_keys)
    check_door(listen, openness, keys=(workspace / FILE).exists())


def _with_port(address: str, port: int | None) -> str:
    """Put the port that was taken into an address; nothing where there is none."""
    return f"{address.rpartition(':')[0]}:{port}" if port else ""


@with_flags_of(options.following)
def up(
    *,
    bundles: Annotated[
        list[Path] | None,
        typer.Option("--bundle", help="Folder of a bundle of this machine, in a coordinator's stead; repeatable."),
    ] = None,
    http: Annotated[str, typer.Option(help="host:port to answer at; port 0 takes a free one.")] = HTTP,
    workspace: Workspace = Path(),
    device: Device = None,
    quantise: Quantise = None,
    json_: Json = False,
    **flags: Any,
) -> None:
    """Fetch the newest release, or take bundles, and answer over HTTP, with a page at /; opens no other door.

    Example: greylag-router up -w node --coordinator pool.example.org:7443 --base google/t5-v1_1-small
    """
    from router.settings import FILE, RouterSettings, load, load_serving, save

    if bundles and (needless := [name for name, value in flags.items() if value and name != "base"]):
        what = f"--bundle answers without a coordinator, so --{needless[0].replace('_', '-')} has no use."
        raise Refused(Code.REQUEST_INVALID, what, "Leave one of them out.")

    def on_ready(_: int, port: int | None) -> None:
        if isinstance(settings, RouterSettings) and not (workspace / FILE).exists():
            save(workspace, settings)
        url = f"http{'s' if settings.tls_cert else ''}://{_with_port(http, port)}"
        if json_:
            print_json({"http": url})
        else:
            put(url)
        say(f"Open {url}/ in a browser, or point an OpenAI client at {url}/v1; stop with Ctrl-C.")

    given = {"http": http, "device": device, "quantise": quantise}
    settings = load_serving(base=flags["base"], **given) if bundles else load(workspace, **flags, **given)
    settings = settings.model_copy(update={"listen": None})
    configure_logs()
    _check_http(workspace, settings)
    show_bars()
    from router.serving.process import run, run_bundles

    if isinstance(settings, RouterSettings):
        run(workspace, settings, on_ready)
    else:
        run_bundles(workspace, bundles or [], settings, on_ready)
