"""What all verbs of the command line share: flags, the model they ask, errors as sentences."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import Code, Refused
from protocol.programs import say
from router.base import progress
from router.base.device_map import Bits
from router.query.limits import MAX_NEW_TOKENS

if TYPE_CHECKING:
    from router.model.routed_model import RoutedModel
    from router.query.answer import Answered
    from router.query.request import Request, RoutingChoice

_ONE = "Give one of the two."

Workspace = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="GREYLAG_WORKSPACE", help="Workspace: the folder with router.toml.")
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base", help="The pool's base model, a folder or Hugging Face id; default: that of router.toml."),
]
Ca = Annotated[Path | None, typer.Option(help="CA certificate of the other side, PEM; default: the system's.")]
Device = Annotated[
    str | None,
    typer.Option(help="Torch device, or auto for all GPUs, then memory, then disk; default: a GPU or the CPU."),
]
Quantise = Annotated[
    Bits | None, typer.Option(help="Hold the base's weights in 4bit or 8bit; default: as its files have them.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Requests = Annotated[
    str | None,
    typer.Option(help="JSON Lines of input or messages with a routing choice; - reads stdin. Flags fill gaps."),
]
Texts = Annotated[list[str] | None, typer.Argument(help="Inputs; - reads one a line from stdin.")]
NewTokens = Annotated[int, typer.Option(min=1, max=MAX_NEW_TOKENS, help="Longest answer, in tokens.")]


def _choice(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Routing choice")


def following(
    *,
    coordinator: Annotated[
        str | None, typer.Option(help="The coordinator, host:port; default: that of router.toml.")
    ] = None,
    base: BaseModel = None,
    pool_key: Annotated[
        str | None,
        typer.Option(help="The key that must sign the pool, 64 hexadecimal digits; default: the key seen first."),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(help="Fingerprint of the pool's first root; default: the one that the pool's key signed."),
    ] = None,
    witnesses: Annotated[
        list[str] | None,
        typer.Option("--witness", help="Key of a witness of the pool's log; repeatable; default: router.toml's."),
    ] = None,
    witnesses_needed: Annotated[
        int | None, typer.Option(min=0, help="How many of them must have signed for a release; default: all.")
    ] = None,
    ca: Ca = None,
) -> None:
    """Flags of what every verb that fetches releases says of where they come from."""


def model(
    *,
    workspace: Workspace = Path(),
    saved: Annotated[Path | None, typer.Option(help="Ask the model that `save` wrote to this folder.")] = None,
    base: BaseModel = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="What retrieval embeds queries by, a folder or Hugging Face id; default: that of router.toml."
        ),
    ] = None,
    device: Device = None,
    quantise: Quantise = None,
) -> None:
    """Flags of what every verb that asks a model says of it."""


def running(
    *,
    server: Annotated[
        str | None,
        typer.Option(help="Ask the `greylag-router serve` that runs at host:port; default: load the model here."),
    ] = None,
    ca: Ca = None,
) -> None:
    """Flags of verbs that can also ask a router that runs."""


def method(
    *, method: Annotated[str | None, _choice("Routing method (see `methods`); default: the release's.")] = None
) -> None:
    """Flag of the field of a routing choice that `choice` leaves out."""


def choice(
    *,
    k: Annotated[int | None, _choice("Experts a token; default: the release's.", "--k")] = None,
    temperature: Annotated[float | None, _choice("Divides the scores before the softmax; default: 1.")] = None,
    allow: Annotated[
        list[str] | None,
        _choice("An expert that may answer: name, contributor/name, or contributor/ for all; repeatable."),
    ] = None,
    deny: Annotated[list[str] | None, _choice("An expert that may not answer, named alike; repeatable.")] = None,
    release: Annotated[int | None, _choice("An earlier release that is still held; default: the newest.")] = None,
) -> None:
    """Flags of a routing choice, but its method, which `evaluate` has several of."""


def read_choice(shared: dict[str, Any]) -> "RoutingChoice":
    """Make a routing choice of a verb's `**shared`.

    Raises:
        Refused: `REQUEST_INVALID` or `METHOD_UNKNOWN`.
    """
    from router.methods import find_method
    from router.query.request import RoutingChoice

    given: dict[str, Any] = {field.name: shared.get(field.name) for field in fields(RoutingChoice)}
    if given["method"] is not None:
        find_method(given["method"])  # before the model wakes
    return RoutingChoice(**given | {"allow": given["allow"] or None, "deny": given["deny"] or ()})


def read_inputs(text: list[str] | None, requests: str | None, choice: "RoutingChoice") -> "list[Request]":
    """Read what is asked: inputs of the command line, of stdin, or JSON Lines with choices of their own.

    Args:
        text: Inputs; `-` alone stands for stdin.
        requests: A file of JSON Lines; `-` stands for stdin.
        choice: How inputs are routed that say nothing themselves.

    Raises:
        Refused: `REQUEST_INVALID`.
    """
    from router.methods import find_method
    from router.query.request import Request, read_requests

    if bool(text) == bool(requests):
        raise Refused(Code.REQUEST_INVALID, "A request is either inputs on the command line or --requests FILE.", _ONE)
    if text and text != ["-"]:
        try:
            "".join(text).encode()
        except UnicodeError as error:
            raise _not_text() from error
        return [Request(line, choice) for line in text]
    lines = read_lines(requests or "-")
    asked = read_requests(lines, choice) if requests else [Request(line, choice) for line in lines]
    if not asked:
        raise Refused(Code.REQUEST_INVALID, "There is nothing to ask.", "Give one input a line.")
    for each in asked:
        if each.choice.method is not None:
            find_method(each.choice.method)
    return asked


def read_lines(path: str) -> list[str]:
    """Read the lines of a file, or of stdin for `-`.

    Raises:
        Refused: `REQUEST_INVALID` for what is not UTF-8.
    """
    try:
        if path == "-":
            return [line.rstrip("\n") for line in sys.stdin or ()]  # stdin is None where the shell closed it
        return Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeError as error:
        raise _not_text() from error


def _not_text() -> Refused:
    return Refused(Code.REQUEST_INVALID, "The input is not UTF-8 text.", "Convert it to UTF-8.")


def asking(shared: dict[str, Any], releases: Sequence[int | None]) -> "Callable[..., Answered]":
    """Find who answers: a router that runs, a saved model, or the workspace's.

    Args:
        shared: A verb's `**shared`.
        releases: What is going to be asked for; None stands for the newest.

    Returns:
        A function of inputs and choices, as `RoutedModel.answer`.

    Raises:
        Refused: As `load_model`, or `REQUEST_INVALID` for both a router and a saved model.
    """
    if shared["server"] and shared["saved"]:
        raise Refused(Code.REQUEST_INVALID, "Both --server and --saved are given.", _ONE)
    if shared["server"]:
        from router.query import client

        return partial(client.ask, shared["server"], ca=shared["ca"])
    return open_model(shared, releases).answer


def open_model(shared: dict[str, Any], releases: Sequence[int | None] = ()) -> "RoutedModel":
    """Load a model as `router.model.opening.load_model` does, and say so where it takes a while."""
    from router.model.opening import load_model

    progress.show_bars()
    settings = {name: shared.get(name) for name in ("base", "embedding", "device", "quantise")}
    waiting = Timer(progress.PATIENCE_S, say, ["Loading the model; a large one takes a while."])
    waiting.start()
    try:
        return load_model(shared["workspace"], shared.get("saved"), releases, settings, say)
    finally:
        waiting.cancel()
