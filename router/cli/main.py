"""greylag-router: fetch releases, ask the routed model, keep one running."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import Refused
from protocol.printable import printable
from protocol.programs import print_json, put, run, say, with_flags_of
from router.base.progress import show_bars
from router.cli import chat, evaluate, look, options, serve, witness
from router.cli.options import Json, NewTokens, Requests, Texts, Workspace
from router.cli.users import users
from router.query.limits import DEFAULT_NEW_TOKENS

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="Fetch the releases of a pool, ask its routed model, keep one running.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (evaluate.evaluate, look.trace, look.save, look.export, look.verify):
    app.command()(verb)
app.command()(witness.witness)
app.command()(chat.chat)
app.command()(serve.serve)
app.command()(serve.up)
app.add_typer(users, name="users")
app.command("lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(evaluate.lm_eval)


def main() -> None:
    """Run the program."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which of its parts are not there
    run(app)


@app.command()
@with_flags_of(options.following)
def pull(*, workspace: Workspace = Path(), json_: Json = False, **flags: Any) -> None:
    """Fetch the newest release: only what is missing, checked byte by byte.

    Example: greylag-router pull --coordinator pool.example.org:7443 --ca cert.pem --base google/t5-v1_1-small
    """
    from router.follow import pull as pulling
    from router.settings import load, save

    show_bars()
    settings = load(workspace, **flags)
    mirror = pulling.pull(workspace, settings.coordinator, base=settings.base, say=say, **settings.contact)
    save(workspace, settings)
    release = mirror.release.spec
    if json_:
        experts = [expert.model_dump() for expert in release.experts]
        print_json({"pool": mirror.pool.spec.name, "release": release.number, "experts": experts})
    else:
        put(f"Release {release.number} of {mirror.pool.spec.name}: {len(release.experts)} experts.")
        for expert in release.experts:
            put(f"  {expert.contributor}/{expert.name}  {expert.bundle[:16]}")


@app.command()
def check(
    *,
    workspace: Workspace = Path(),
    sample: Annotated[
        int | None, typer.Option(min=1, help="Read so many bundles, drawn at random; default: all of them.")
    ] = None,
    json_: Json = False,
) -> None:
    """Read again what was pulled, byte by byte, and name what is damaged.

    Example: greylag-router check -w node --sample 10
    """
    from router.follow.workspace import check_disk

    found = check_disk(workspace, sample)
    damaged = [{"digest": it, "code": error.code.name, "message": error.message} for it, error in found.damaged.items()]
    if json_:
        print_json(found._asdict() | {"damaged": damaged})
    else:
        put(f"Read {found.read} of {found.held}; {len(damaged)} are damaged.")
        for each in damaged:
            put(f"  {each['digest'][:16]}  {each['message']}")
    if found.damaged:
        code = next(iter(found.damaged.values())).code
        raise Refused(
            code,
            f"{len(found.damaged)} of {found.read} are damaged.",
            "Fetch those of the newest release with: greylag-router pull; those of earlier ones alone it leaves.",
        )


@app.command()
@with_flags_of(options.model, options.running, options.method, options.choice)
def ask(
    *,
    text: Texts = None,
    requests: Requests = None,
    max_new_tokens: NewTokens = DEFAULT_NEW_TOKENS,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which experts answered, by token and module.")
    ] = False,
    json_: Json = False,
    **flags: Any,
) -> None:
    """Ask the routed model one or more inputs; the input - reads one a line from stdin.

    Example: greylag-router ask --explain --deny mallory/ "Translate to French: good morning"
    """
    from rich.console import Console

    from router.query import terminal

    asked = options.read_inputs(text, requests, options.read_choice(flags))
    choices = [each.choice for each in asked]
    answered = options.asking(flags, [each.release for each in choices])(
        [each.input for each in asked],
        choices[0] if len(set(choices)) == 1 else choices,
        max_new_tokens=max_new_tokens,
        explain=explain,
    )
    if json_:
        print_json(terminal.as_json(answered, explain=explain))
        return
    for answer in answered.answers:
        # In a pipe it is data and stays as it is.
        sys.stdout.write((printable(answer.text) if sys.stdout.isatty() else answer.text) + "\n")
        if explain:
            terminal.explain(Console(stderr=True), answered, answer)


@app.command()
def methods(*, json_: Json = False) -> None:
    """List the routing methods.

    Example: greylag-router methods
    """
    from router.methods import METHODS

    if json_:
        print_json({"methods": METHODS})
    else:
        for name, line in METHODS.items():
            sys.stdout.write(f"{name:<20} {line}\n")


if __name__ == "__main__":
    main()
