"""greylag-router: fetch releases, ask the routed model, keep one running."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import Code, GreylagError, Refused, from_os_error
from router.limits import DEFAULT_NEW_TOKENS, MAX_NEW_TOKENS

if TYPE_CHECKING:
    from router.answer import Answered
    from router.request import Request, RoutingChoice

app = typer.Typer(
    help="Fetch the releases of a pool, ask its routed model, keep one running.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Workspace = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="GREYLAG_WORKSPACE", help="Workspace: the folder with router.toml.")
]
Coordinator = Annotated[str | None, typer.Option(help="The coordinator, host:port; default: that of router.toml.")]
BaseModel = Annotated[
    str | None,
    typer.Option("--base", help="The pool's base model, a folder or Hugging Face id; default: that of router.toml."),
]
Ca = Annotated[Path | None, typer.Option(help="CA certificate of the other side, PEM; default: the system's.")]
Device = Annotated[str | None, typer.Option(help="Torch device; default: the GPU where there is one.")]
Server = Annotated[
    str | None,
    typer.Option(help="Ask the `greylag-router serve` that runs at host:port; default: load the model here."),
]
Method = Annotated[str | None, typer.Option(help="Routing method (see `methods`); default: the release's.")]
Experts = Annotated[int | None, typer.Option("--k", help="Experts a token; default: the release's.")]
Temperature = Annotated[float | None, typer.Option(help="Divides the scores before the softmax; default: 1.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="An expert that may answer: name, contributor/name, or contributor/ for all; repeatable."),
]
Deny = Annotated[list[str] | None, typer.Option(help="An expert that may not answer, named alike; repeatable.")]
Release = Annotated[int | None, typer.Option(help="An earlier release that is still held; default: the newest.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Texts = Annotated[list[str], typer.Argument(help="Inputs; - reads one a line from stdin.")]
NewTokens = Annotated[int, typer.Option(min=1, max=MAX_NEW_TOKENS, help="Longest answer, in tokens.")]


def main() -> None:
    """Run the program; every refusal ends in one sentence and a documented exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else the library narrates handshakes on stderr
    with _door():
        app()


@contextmanager
def _door() -> Iterator[None]:
    try:
        try:
            yield
        except OSError as error:
            raise from_os_error(error) from error
    except GreylagError as error:
        _say(f"error: {error.message} [{error.code.name}]")
        if error.hint:
            _say(f"hint: {error.hint}")
        raise SystemExit(error.code.fate.exit) from None


@app.command()
def pull(
    *,
    workspace: Workspace = Path(),
    coordinator: Coordinator = None,
    base: BaseModel = None,
    pool_key: Annotated[
        str | None,
        typer.Option(help="The key that must sign the pool, 64 hexadecimal digits; default: the key seen first."),
    ] = None,
    ca: Ca = None,
    json_: Json = False,
) -> None:
    """Fetch the newest release: only what is missing, checked byte by byte.

    Example: greylag-router pull --coordinator pool.example.org:7443 --ca cert.pem --base google/t5-v1_1-small
    """
    from protocol.signing import PublicKey
    from router import pull as pulling
    from router.settings import load, save

    settings = load(workspace, coordinator=coordinator, base=base, ca=ca)
    trusted = PublicKey.from_hex(pool_key) if pool_key else None
    first = not (workspace / pulling.POOL).exists()
    mirror = pulling.pull(workspace, settings.coordinator, ca=settings.ca, pool_key=trusted)
    save(workspace, settings)
    release = mirror.release.spec
    if first and trusted is None:
        _say(f"Trusting the pool's key {mirror.pool.spec.coordinator} on first use; compare it with the operator's.")
    if json_:
        experts = [expert.model_dump() for expert in release.experts]
        _print_json({"schema": 1, "pool": mirror.pool.spec.name, "release": release.number, "experts": experts})
    else:
        sys.stdout.write(f"Release {release.number} of {mirror.pool.spec.name}: {len(release.experts)} experts.\n")
        for expert in release.experts:
            sys.stdout.write(f"  {expert.contributor}/{expert.name}  {expert.bundle[:16]}\n")


@app.command()
def ask(
    text: Annotated[list[str] | None, typer.Argument(help="Inputs; - reads one a line from stdin.")] = None,
    *,
    requests: Annotated[
        str | None,
        typer.Option(help="JSON Lines, each an input with its routing choice; - reads stdin. Flags fill gaps."),
    ] = None,
    workspace: Workspace = Path(),
    server: Server = None,
    base: BaseModel = None,
    method: Method = None,
    k: Experts = None,
    temperature: Temperature = None,
    allow: Allow = None,
    deny: Deny = None,
    release: Release = None,
    max_new_tokens: NewTokens = DEFAULT_NEW_TOKENS,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which experts answered, by token and module.")
    ] = False,
    ca: Ca = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Ask the routed model one or more inputs; the input - reads one a line from stdin.

    Example: greylag-router ask --explain --deny mallory/ "Translate to French: good morning"
    """
    from rich.console import Console

    from router import show
    from router.request import RoutingChoice

    flags = RoutingChoice(method, k, temperature, tuple(allow) if allow else None, tuple(deny or ()), release)
    asked = _requests(text, requests, flags)
    answered = _ask(
        asked,
        workspace,
        server,
        max_new_tokens=max_new_tokens,
        explain=explain,
        ca=ca,
        settings={"base": base, "device": device},
    )
    if json_:
        _print_json(show.as_json(answered, explain=explain))
        return
    for answer in answered.answers:
        # In a pipe it is data and stays as it is.
        sys.stdout.write((show.printable(answer.text) if sys.stdout.isatty() else answer.text) + "\n")
        if explain:
            show.explain(Console(stderr=True), answered, answer)


@app.command()
def trace(
    text: Texts,
    *,
    png: Annotated[Path | None, typer.Option(help="Picture to write, PNG.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Page to write, HTML: point at cells and tokens to read them.")
    ] = None,
    workspace: Workspace = Path(),
    server: Server = None,
    base: BaseModel = None,
    max_new_tokens: NewTokens = DEFAULT_NEW_TOKENS,
    ca: Ca = None,
    device: Device = None,
) -> None:
    """Draw which expert served which module, as a heat map; the input - reads one a line from stdin.

    Example: greylag-router trace --png map.png "Translate to French: good morning"
    """
    from router.picture import save_page, save_png
    from router.request import DEFAULT
    from router.trace import Panel

    if not (png or html):
        raise Refused(Code.REQUEST_INVALID, "There is nothing to write.", "Give --png FILE, --html FILE or both.")
    asked = _requests(text, None, DEFAULT)
    answered = _ask(
        asked,
        workspace,
        server,
        max_new_tokens=max_new_tokens,
        explain=True,
        ca=ca,
        settings={"base": base, "device": device},
    )
    routes = [route for answer in answered.answers for route in answer.routes]
    panels = [Panel(f"{len(asked)} requests, {answered.routed_by}", routes)]
    if png:
        save_png(panels, answered.experts, png)
        _say(f"Wrote {png}.")
    if html:
        save_page(panels, answered, html)
        _say(f"Wrote {html}.")


@app.command()
def serve(
    *,
    workspace: Workspace = Path(),
    coordinator: Coordinator = None,
    base: BaseModel = None,
    listen: Annotated[
        str | None, typer.Option(help="host:port; port 0 takes a free one; default: that of router.toml.")
    ] = None,
    follow_interval_s: Annotated[float | None, typer.Option(help="Seconds between two looks for a release.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM; needed beyond loopback.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    ca: Ca = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Keep a routed model running at the newest release, and answer over gRPC, until SIGTERM.

    Example: greylag-router serve -w node --listen 127.0.0.1:7444
    """
    from router.running import run
    from router.settings import FILE, load, save

    def on_ready(port: int) -> None:
        if not (workspace / FILE).exists():
            save(workspace, settings)
        address = f"{settings.listen.rpartition(':')[0]}:{port}"
        if json_:
            _print_json({"schema": 1, "address": address})
        _say(f"Answering at {address}; stop with Ctrl-C.")

    settings = load(
        workspace, coordinator=coordinator, base=base, listen=listen, follow_interval_s=follow_interval_s,
        tls_cert=tls_cert, tls_key=tls_key, ca=ca, device=device,
    )  # fmt: skip
    _configure_logs()
    run(workspace, settings, on_ready)


@app.command()
def methods(*, json_: Json = False) -> None:
    """List the routing methods.

    Example: greylag-router methods
    """
    from router.methods import METHODS

    if json_:
        _print_json({"schema": 1, "methods": METHODS})
    else:
        for name, line in METHODS.items():
            sys.stdout.write(f"{name:<12} {line}\n")


def _requests(text: list[str] | None, requests: str | None, choice: "RoutingChoice") -> "list[Request]":
    from router.request import Request, read_requests

    if bool(text) == bool(requests):
        raise Refused(
            Code.REQUEST_INVALID,
            "A request is either inputs on the command line or --requests FILE.",
            "Give one of the two.",
        )
    try:
        if text and text != ["-"]:
            "".join(text).encode()
            return [Request(line, choice) for line in text]
        if requests in (None, "-"):
            lines = [line.rstrip("\n") for line in sys.stdin or ()]  # stdin is None where the shell closed it
        else:
            lines = Path(str(requests)).read_text(encoding="utf-8").split("\n")
    except UnicodeError as error:
        raise Refused(Code.REQUEST_INVALID, "The input is not UTF-8 text.", "Convert it to UTF-8.") from error
    return read_requests(lines, choice) if requests else [Request(line, choice) for line in lines]


def _ask(
    asked: "list[Request]",
    workspace: Path,
    server: str | None,
    *,
    ca: Path | None,
    settings: dict[str, str | None],
    **options: Any,
) -> "Answered":
    inputs, choices = [each.input for each in asked], [each.choice for each in asked]
    choice = choices[0] if len(set(choices)) == 1 else choices
    if server:
        from router import query

        return query.ask(server, inputs, choice, ca=ca, **options)
    from protocol.release import read_timestamp
    from router.pull import FINGERPRINT, open_mirror
    from router.settings import load

    mirror = open_mirror(workspace)
    chosen = load(workspace, **settings)
    spec = mirror.release.spec
    if read_timestamp(spec.expires) < datetime.now(UTC):
        _say(f"Release {spec.number} expired at {spec.expires}; fetch the newest with: greylag-router pull")
    # Last, since it brings torch with it: what is wrong with the workspace is said at once.
    from router.model import RoutedModel

    cache = workspace / FINGERPRINT
    wanted = {each.release for each in choices if each.release is not None} - {spec.number}
    earlier = [open_mirror(workspace, number) for number in sorted(wanted)]
    model = RoutedModel.from_mirror(chosen.base, mirror, earlier=earlier, device=chosen.device, cache=cache)
    return model.answer(inputs, choice, **options)


def _configure_logs() -> None:
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Plain tracebacks: the pretty ones print local variables, and with them people's questions.
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
