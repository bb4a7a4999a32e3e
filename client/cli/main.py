"""greylag-client: the command line of a contributor."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from client.cli import daemon, history, keys, submit
from client.cli.options import (
    GatesVerb,
    GiveUpFlag,
    ProgressFlag,
    TrainingVerb,
    Verb,
    WaitFlag,
    WorkspaceFlag,
    at_work,
    in_workspace,
    open_workspace,
)
from client.cli.progress import Style, show
from client.cli.submit import submit_bundle
from client.libraries import quiet_libraries
from client.progress import Report
from client.runs.consent import TELLS, Share
from client.training.distributed import leads
from protocol.programs import put, run, say, with_flags_of
from router.base.device_map import Bits, read_amounts

if TYPE_CHECKING:
    from client.training.plan import TrainingRequest
    from client.workspace.paths import ClientWorkspace
    from protocol.bundle import Bundle
    from protocol.spec import Promise


app = typer.Typer(
    help="Train experts on data that stays here, and contribute them to a pool.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


ShareFlag = Annotated[
    list[Share] | None,
    typer.Option(
        help="Statistics of the data to put into the bundle, for other routing methods; repeatable. means tell which "
        "words the data are made of (all-means: best), a centroid what the inputs are about. Default: nothing."
    ),
]


def asked(
    *,
    data: Annotated[list[Path], typer.Option(help="File of examples: JSON Lines, CSV or Parquet; repeatable.")],
    name: Annotated[str | None, typer.Option(help="The expert's name; default: the contributor's.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of first weights and order of examples.")] = 0,
    device: Annotated[
        Literal["cpu", "cuda", "auto"] | None,
        typer.Option(
            help="Where to train; default: a GPU if there is one. auto spreads the base over all GPUs, then memory, "
            "then disk."
        ),
    ] = None,
    max_memory: Annotated[
        list[str] | None,
        typer.Option(
            help="With --device auto: most that the base takes of a GPU or of memory, as in 0=20GiB or cpu=8GiB; "
            "repeatable. Default: nine tenths of what is free."
        ),
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Examples in memory at once; default: all.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="What the base computes in; default: its files' dtype. Experts are float32."),
    ] = None,
    quantise: Annotated[Bits | None, typer.Option(help="Bits of the base's weights (QLoRA); default: dtype's.")] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations anew: slower, less memory.")
    ] = False,
    packing: Annotated[
        bool, typer.Option("--packing", help="Let a decoder's short examples share rows: quicker.")
    ] = False,
    share: ShareFlag = None,
    input_column: Annotated[str | None, typer.Option(help="Column of the inputs; default: client.toml's.")] = None,
    target_column: Annotated[str | None, typer.Option(help="Column of the targets; default: client.toml's.")] = None,
    progress: ProgressFlag = Style.AUTO,
    workspace: WorkspaceFlag = Path(),
    **recipe: Any,
) -> "Requested":
    """Read what every verb that trains is told by its flags, and say what will be shared."""
    from client.training.plan import TrainingRequest

    place = open_workspace(workspace, input_column=input_column, target_column=target_column)
    request = TrainingRequest(
        tuple(data), name, seed, recipe, share=tuple(share or ()), device=device,
        max_memory=read_amounts(max_memory or ()), micro_batch=micro_batch, dtype=dtype, quantise=quantise,
        recompute=recompute, packing=packing,
    )  # fmt: skip
    for each in request.share if leads() else ():  # before anything is computed
        say(f"The bundle will tell others {TELLS[each]}")
    return Requested(place, request, progress)


class Requested(NamedTuple):
    """What a verb that trains was told."""

    place: "ClientWorkspace"
    request: "TrainingRequest"
    progress: Style

    @contextmanager
    def trained(self, **more: Any) -> "Iterator[tuple[Bundle, Report] | None]":
        """Train and pack, with further fields of the request, in a workspace that is locked for the block.

        Yields:
            The bundle, and what shows progress; None in a process that only assists.
        """
        from client.job import assist, produce

        place, request = self.place, replace(self.request, **more)
        quiet_libraries(place.settings.base, place.settings.embedding, request.adapter)
        if not leads():
            assist(place, request)
            yield None
            return
        with at_work(place), show(self.progress) as report:
            yield produce(place, request, report, datetime.now(UTC), say), report

    def train(self, **more: Any) -> None:
        """Train and pack, and say how to go on."""
        with self.trained(**more) as done:
            if done:
                bundle, _ = done
                send = f"The bundle {bundle.spec.name} is ready; send it with: greylag-client submit {bundle.spec.name}"
                say(in_workspace(send, self.place.root))
                put(f"{bundle.digest} {bundle.folder}")


@app.command(cls=Verb)
def init(
    *,
    coordinator: Annotated[str, typer.Option(help="The coordinator, host:port.")],
    name: Annotated[str | None, typer.Option(help="Name to enrol under; default: made from the key.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder or Hugging Face id; default: the pool's.")
    ] = None,
    pool_key: Annotated[
        str | None,
        typer.Option(help="The key that must sign the pool, 64 hexadecimal digits; default: the key seen first."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="The coordinator's CA certificate, PEM; default: the system's.")
    ] = None,
    invite: Annotated[
        str, typer.Option(envvar="GREYLAG_INVITE", help="Token of an invite, where the pool asks for one.")
    ] = "",
    license_id: Annotated[
        str | None, typer.Option("--license", help="License of the experts, an SPDX identifier; default: apache-2.0.")
    ] = None,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """Join a pool: check it and the base model, make a key, write client.toml.

    Prints the contributor's public key.

    Example: greylag-client init --coordinator pool.example.org:7443 --ca cert.pem --name ada
    """
    from client.submission.join import join
    from client.workspace.disk import storage
    from client.workspace.paths import ClientWorkspace

    flags: dict[str, object] = {
        "coordinator": coordinator, "name": name, "base": base, "pool_key": pool_key, "ca": ca, "license": license_id,
    }  # fmt: skip
    with storage():
        put(join(ClientWorkspace(workspace), flags, datetime.now(UTC), say, invite=invite).hex)


@app.command(cls=TrainingVerb)
@with_flags_of(asked)
def train(
    *,
    joint: Annotated[
        bool, typer.Option("--joint", help="Train gates together with the expert, to compare: such gates route worse.")
    ] = False,
    epsilon: Annotated[
        float | None, typer.Option(help="Bound of differential privacy for every example, over all steps.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Its second figure; far less than one in the examples.")] = None,
    clip: Annotated[float, typer.Option(help="Norm to which the gradient of each example is clipped, for it.")] = 1.0,
    **flags: Any,
) -> None:
    """Train an expert and its gates, and pack them into a signed bundle. Run again to resume; so after Ctrl-C.

    Nothing leaves this machine. Prints the bundle's digest and folder.

    Example: greylag-client train --data notes.jsonl --rank 8
    """
    asked(**flags).train(privacy=privacy(epsilon, delta, clip), joint=joint)


@app.command(cls=GatesVerb)
@with_flags_of(asked)
def gates(
    *,
    adapter: Annotated[
        str, typer.Option(help="Folder or Hugging Face id of a LoRA, rsLoRA, DoRA or (IA)3 adapter as PEFT saves it.")
    ],
    **flags: Any,
) -> None:
    """Train only the gates of an adapter that is there already, and pack both. Run again to resume.

    The adapter must have been trained on the pool's base model. Its files cannot prove that, so the loss on held-out
    rows is told with it and without. Nothing leaves this machine. Prints the bundle's digest and folder.

    Example: greylag-client gates --adapter my-lora --data notes.jsonl
    """
    asked(**flags).train(adapter=adapter)


@app.command(cls=TrainingVerb)
@with_flags_of(asked)
def contribute(*, wait: WaitFlag = False, give_up_after: GiveUpFlag = None, **flags: Any) -> None:
    """Train, pack and submit in one go. Run again to resume.

    Example: greylag-client contribute --data notes.jsonl --wait
    """
    told = asked(**flags)
    with told.trained() as done:
        if done:
            submit_bundle(told.place, *done, wait=wait, give_up_after=give_up_after)


def privacy(epsilon: float | None, delta: float | None, clip: float) -> "Promise | None":
    """Read a promise from its flags.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    from client.training.plan import from_flags
    from protocol.errors import Code, Refused
    from protocol.spec import Promise

    if epsilon is delta is None:
        return None
    if epsilon is None or delta is None:
        raise Refused(Code.SETTINGS_INVALID, "--epsilon and --delta go together.", "Give both, or neither.")
    return from_flags(Promise, {"epsilon": epsilon, "delta": delta, "clip": clip})


# After the verbs above, so that --help lists all of them in the order in which a person comes to them.
for _verb in (submit.submit, submit.status, history.history, submit.verify, daemon.daemon, keys.rotate_key):
    app.command(cls=Verb)(_verb)
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run the program; every refusal ends in one sentence and a documented exit status."""
    run(app)


if __name__ == "__main__":
    main()
