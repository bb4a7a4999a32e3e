"""greylag-router: fetch releases, ask the routed model, keep one running."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import GreylagError

if TYPE_CHECKING:
    from router.answer import Answered
    from router.settings import RouterSettings

app = typer.Typer(
    help="Fetch releases of a pool, ask its routed model, keep one running.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Workspace = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="GREYLAG_WORKSPACE", help="Folder with router.toml and releases.")
]
Coordinator = Annotated[str | None, typer.Option(help="The coordinator, host:port.")]
BaseModel = Annotated[str | None, typer.Option("--base", help="The pool's base model: folder or Hugging Face id.")]
Ca = Annotated[Path | None, typer.Option(help="CA certificate of the other side, PEM.")]
Device = Annotated[str | None, typer.Option(help="Torch device; by default the GPU where there is one.")]
Server = Annotated[str | None, typer.Option(help="Ask a running `greylag-router serve` at host:port instead.")]
Method = Annotated[str | None, typer.Option(help="Routing method (see `methods`); by default the release's.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
NewTokens = Annotated[int, typer.Option(min=1, max=1024, help="Longest answer, in tokens.")]


def main() -> None:
    """Run the program; every refusal ends in one sentence and a documented exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else the library narrates handshakes on stderr
    with _door():
        app()


@contextmanager
def _door() -> Iterator[None]:
    try:
        yield
    except GreylagError as error:
        sys.stderr.write(f"error: {error.message} [{error.code.name}]\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        raise SystemExit(error.code.fate.exit) from None


@app.command()
def pull(
    workspace: Workspace = Path(),
    coordinator: Coordinator = None,
    base: BaseModel = None,
    pool_key: Annotated[
        str | None, typer.Option(help="The key that must sign the pool, as the operator shows it.")
    ] = None,
    ca: Ca = None,
    json_: Json = False,
) -> None:
    """Fetch the newest release: only what is missing, checked byte by byte.

    Example: greylag-router pull --coordinator localhost:50051 --base google/t5-small-lm-adapt
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
        sys.stderr.write(
            f"Trusting pool key {mirror.pool.spec.coordinator} from now on; compare it with the operator's.\n"
        )
    if json_:
        experts = [expert.model_dump() for expert in release.experts]
        _print_json({"schema": 1, "pool": mirror.pool.spec.name, "release": release.number, "experts": experts})
    else:
        sys.stdout.write(f"Release {release.number} of {mirror.pool.spec.name}: {len(release.experts)} experts.\n")
        for expert in release.experts:
            sys.stdout.write(f"  {expert.contributor}/{expert.name}  {expert.bundle[:16]}\n")


@app.command()
def ask(
    text: Annotated[list[str], typer.Argument(help="One or more inputs; - reads one input a line from stdin.")],
    workspace: Workspace = Path(),
    server: Server = None,
    method: Method = None,
    max_new_tokens: NewTokens = 64,
    explain: Annotated[bool, typer.Option(help="Show which experts answered, per token and module.")] = False,
    ca: Ca = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Ask the routed model.

    Example: greylag-router ask --explain "Translate to French: good morning"
    """
    from rich.console import Console

    from router import show

    inputs = [line.rstrip("\n") for line in sys.stdin] if text == ["-"] else text
    answered = _ask(
        inputs, workspace, server, method=method, max_new_tokens=max_new_tokens, explain=explain, ca=ca, device=device
    )
    if json_:
        _print_json(show.as_json(answered, explain=explain))
        return
    for answer in answered.answers:
        sys.stdout.write(answer.text + "\n")
        if explain:
            show.explain(Console(stderr=True), answered, answer)


@app.command()
def trace(
    png: Annotated[Path, typer.Option(help="Picture to write: which expert served which module.")],
    text: Annotated[list[str], typer.Argument(help="One or more inputs; - reads one input a line from stdin.")],
    workspace: Workspace = Path(),
    server: Server = None,
    max_new_tokens: NewTokens = 64,
    ca: Ca = None,
    device: Device = None,
) -> None:
    """Draw which expert served which module, as a heat map.

    Example: greylag-router trace --png map.png "Translate to French: good morning"
    """
    from router.trace import save_heat_map

    inputs = [line.rstrip("\n") for line in sys.stdin] if text == ["-"] else text
    answered = _ask(
        inputs, workspace, server, method=None, max_new_tokens=max_new_tokens, explain=True, ca=ca, device=device
    )
    routes = [route for answer in answered.answers for route in answer.routes]
    save_heat_map({f"{len(inputs)} requests, release {answered.release}": routes}, answered.experts, png)
    sys.stderr.write(f"Wrote {png}.\n")


@app.command()
def serve(
    workspace: Workspace = Path(),
    coordinator: Coordinator = None,
    base: BaseModel = None,
    listen: Annotated[str | None, typer.Option(help="Where to answer, host:port; port 0 takes a free one.")] = None,
    follow_interval_s: Annotated[float | None, typer.Option(help="Seconds between two looks for a release.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    ca: Ca = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Keep a routed model running, at the newest release, and answer over gRPC.

    Example: greylag-router serve --coordinator localhost:50051 --base google/t5-small-lm-adapt
    """
    from router.running import run
    from router.settings import load

    def on_ready(port: int) -> None:
        address = f"{settings.listen.rpartition(':')[0]}:{port}"
        if json_:
            _print_json({"schema": 1, "address": address})
        sys.stderr.write(f"Answering at {address}.\n")

    settings = load(
        workspace, coordinator=coordinator, base=base, listen=listen, follow_interval_s=follow_interval_s,
        tls_cert=tls_cert, tls_key=tls_key, ca=ca, device=device,
    )  # fmt: skip
    _configure_logs()
    run(workspace, settings, on_ready)


@app.command()
def methods(json_: Json = False) -> None:
    """List the routing methods."""
    from router.methods import METHODS

    if json_:
        _print_json({"schema": 1, "methods": METHODS})
    else:
        for name, line in METHODS.items():
            sys.stdout.write(f"{name:<12} {line}\n")


def _ask(
    inputs: list[str], workspace: Path, server: str | None, *, ca: Path | None, device: str | None, **options: Any
) -> "Answered":
    if server:
        from router import query

        options["method"] = options["method"] or ""
        return query.ask(server, inputs, ca=ca, **options)
    from router.pull import open_mirror
    from router.settings import load

    mirror = open_mirror(workspace)
    settings: RouterSettings = load(workspace, device=device)
    # Last, since it brings torch with it: what is wrong with the workspace is said at once.
    from router.model import RoutedModel

    return RoutedModel.from_mirror(settings.base, mirror, device=settings.device).answer(inputs, **options)


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


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
