"""The verbs of greylag-router that look into a model or take it elsewhere."""

import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import Code, Refused
from protocol.programs import print_json, put, say, with_flags_of
from router.cli import options
from router.cli.options import BaseModel, Json, NewTokens, Requests, Texts, Workspace
from router.query.limits import DEFAULT_NEW_TOKENS

if TYPE_CHECKING:
    from protocol.openssf.model_signature import ModelSigner
    from router.query.request import TaskInput

_AT_ONCE = 16
"""Inputs a batch, so that many do not need more memory than a few."""
SigningKey = Annotated[
    Path | None,
    typer.Option(
        help="Elliptic-curve key, PEM, that signs model.sig; default: the workspace's model.key, made if missing. "
        "GREYLAG_KEY_PASSPHRASE opens it."
    ),
]


@with_flags_of(options.model, options.running, options.method, options.choice)
def trace(
    *,
    text: Texts = None,
    tasks: Annotated[
        str | None, typer.Option(help="JSON Lines of task, input or messages and, where known, oracle and score.")
    ] = None,
    oracle: Annotated[
        str | None, typer.Option(help="The expert that was trained for these inputs; marked, and compared with.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Picture to write, PNG.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Page to write, HTML: point at cells and tokens to read them.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Take the probabilities of all experts, not of the chosen alone.")
    ] = False,
    max_new_tokens: NewTokens = DEFAULT_NEW_TOKENS,
    json_: Json = False,
    **flags: Any,
) -> None:
    """Look at which experts serve which modules and tokens: heat maps, distributions, distance from an oracle's.

    Example: greylag-router trace --html map.html --oracle ada/french "Translate to French: good morning"
    """
    from router.query import terminal
    from router.query.answer import merge_answers
    from router.query.attribution import panels_by_task, panels_document
    from router.query.heatmap import save_page, save_png

    if not (png or html or json_):
        raise Refused(
            Code.REQUEST_INVALID, "There is nothing to write.", "Give --png FILE, --html FILE, --json or several."
        )
    if full and flags["server"]:
        raise Refused(
            Code.REQUEST_INVALID,
            "A router that serves sends the chosen experts alone, not whole distributions.",
            "Leave out --server to load the model here, or leave out --full.",
        )
    asked, routing = _tasks(text, tasks, oracle), options.read_choice(flags)
    more = {"full": True} if full else {}
    ask = partial(options.asking(flags, [routing.release]), max_new_tokens=max_new_tokens, explain=True, **more)
    inputs = [each.input for each in asked]
    answered = merge_answers([ask(inputs[at : at + _AT_ONCE], routing) for at in range(0, len(inputs), _AT_ONCE)])
    panels = panels_by_task(asked, answered)
    if png:
        save_png(panels, answered.experts, png)
        say(f"Wrote {png}.")
    if html:
        save_page(panels, answered, html)
        say(f"Wrote {html}.")
    if json_:
        print_json(terminal.as_json(answered, explain=True) | panels_document(panels, answered.experts))


@with_flags_of(options.model, options.method, options.choice)
def export(
    *,
    text: Texts = None,
    out: Annotated[Path, typer.Option(help="New folder for the adapter.")],
    requests: Requests = None,
    signing_key: SigningKey = None,
    rank: Annotated[int, typer.Option(min=1, max=1024, help="Rank of the adapter; engines bound it.")] = 64,
    max_new_tokens: NewTokens = DEFAULT_NEW_TOKENS,
    json_: Json = False,
    **flags: Any,
) -> None:
    """Write what answers a request as one plain LoRA, for engines that take one adapter, and sign it (model.sig).

    Experts are merged at their mean weight over the request's tokens, so the adapter serves inputs like it.

    Example: greylag-router export --out french-lora --rank 32 "Translate to French: good morning"
    """
    asked = options.read_inputs(text, requests, options.read_choice(flags))
    choices = [each.choice for each in asked]
    model = options.open_model(flags, [each.release for each in choices])
    inputs = [each.input for each in asked]
    signer = _signer(signing_key, flags["workspace"])
    exported = model.export_lora(out, inputs, choices, rank=rank, max_new_tokens=max_new_tokens, signer=signer)
    if json_:
        print_json({"folder": str(out)} | asdict(exported))
    say(f"Wrote {out}: rank {exported.rank} at {exported.modules} modules keeps {exported.kept:.1%} of the mixture.")


def save(
    out: Annotated[Path, typer.Argument(help="New folder for the model.")],
    *,
    with_base: Annotated[bool, typer.Option("--with-base", help="Copy the base model's files, too.")] = False,
    signing_key: SigningKey = None,
    workspace: Workspace = Path(),
    base: BaseModel = None,
    json_: Json = False,
) -> None:
    """Write the newest release that was pulled as one folder, and sign it (model.sig); `ask --saved` needs no more.

    Example: greylag-router save --with-base model
    """
    model = options.open_model({"workspace": workspace, "base": base, "device": "cpu"})
    identity = model.save_pretrained(out, with_base=with_base, signer=_signer(signing_key, workspace))
    if json_:
        print_json({"folder": str(out), "identity": identity, "experts": len(model.digests)})
    say(f"Wrote {out}: {len(model.digests)} experts, model {identity}.")


def verify(
    folder: Annotated[Path, typer.Argument(help="A model with its model.sig.")],
    *,
    key: Annotated[Path, typer.Option(help="Public key of who signed it, PEM.")],
    json_: Json = False,
) -> None:
    """Hold a model that was saved or exported, or signed by others (OpenSSF Model Signing), against its signature.

    Example: greylag-router verify release-1 --key model.pub
    """
    from protocol.openssf.model_signature import ModelVerifier, verify_model

    files = verify_model(folder, ModelVerifier.load(key))
    if json_:
        print_json({"folder": str(folder), "files": files})
    else:
        put(f"{folder} is as it was signed: {len(files)} files.")


def _signer(given: Path | None, workspace: Path) -> "ModelSigner":
    """Read the key that signs models; without one that is given, the workspace's, which is made if it is missing."""
    from protocol.files.atomic import write_whole
    from protocol.openssf.model_signature import ModelSigner

    path = given or workspace / "model.key"
    if given or path.exists():
        return ModelSigner.load(path, os.environ.get("GREYLAG_KEY_PASSPHRASE"))
    signer = ModelSigner.generate()
    signer.save(path)
    write_whole(path.with_suffix(".pub"), signer.public.pem)
    say(f"Made the key {path}. Whoever verifies models needs {path.with_suffix('.pub')}: greylag-router verify --key")
    return signer


def _tasks(text: list[str] | None, tasks: str | None, oracle: str | None) -> "list[TaskInput]":
    from router.query.request import DEFAULT, TaskInput, read_tasks

    if tasks and (text or oracle):
        raise Refused(
            Code.REQUEST_INVALID, "Inputs and oracle stand in the file of tasks.", "Give either them or --tasks."
        )
    if tasks:
        return read_tasks(options.read_lines(tasks))
    asked = options.read_inputs(text, None, DEFAULT)
    return [TaskInput(f"{len(asked)} requests", each.input, oracle) for each in asked]
