"""greylag-client: the command line of a contributor."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from client.cli import daemon, keys, submit
from client.cli.options import (
    EXPERT_FLAGS,
    GiveUpFlag,
    ProgressFlag,
    WaitFlag,
    WorkspaceFlag,
    at_work,
    open_workspace,
    recipe_flags,
)
from client.cli.progress import Style, show
from client.cli.submit import check_verdict, send_bundle, show_records
from client.libraries import quiet_libraries
from client.progress import GIVE_UP_AFTER_S
from client.runs.consent import TELLS, Share
from client.training.distributed import leads
from protocol.programs import run, say
from router.base.device_map import read_amounts
from router.base.quantisation import Bits

if TYPE_CHECKING:
    from client.training.request import TrainingRequest
    from protocol.spec import Promise


app = typer.Typer(
    help="Train experts on data that stays here, and contribute them to a pool.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataFlag = Annotated[Path, typer.Option("--data", help="File of examples: JSON Lines, CSV or Parquet.")]
NameFlag = Annotated[str | None, typer.Option("--name", help="The expert's name; default: the contributor's.")]
InputFlag = Annotated[str | None, typer.Option(help="Column of the inputs; default: that of client.toml.")]
TargetFlag = Annotated[str | None, typer.Option(help="Column of the targets; default: that of client.toml.")]
DeviceFlag = Annotated[
    Literal["cpu", "cuda", "auto"] | None,
    typer.Option(
        help="Where to train; default: a GPU where there is one. auto spreads the base over all, memory, disk."
    ),
]
MaxMemoryFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="With --device auto: most that the base takes of a GPU or of memory, as in 0=20GiB or cpu=8GiB; "
        "repeatable. Default: nine tenths of what is free."
    ),
]
MicroBatchFlag = Annotated[int | None, typer.Option(min=1, help="Examples in memory at once; default: the batch.")]
DtypeFlag = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="What the base computes in; default: its files' dtype. Experts are float32."),
]
QuantiseFlag = Annotated[Bits | None, typer.Option(help="Bits of the base's weights (QLoRA); default: those of dtype.")]
RecomputeFlag = Annotated[
    bool, typer.Option("--recompute", help="Compute activations again instead of keeping them: slower, less memory.")
]
PackingFlag = Annotated[
    bool, typer.Option("--packing", help="Let short examples share rows, for decoders: quicker, learns the same.")
]
SeedFlag = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Seed of the initial weights and the order of examples.")
]
ShareFlag = Annotated[
    list[Share] | None,
    typer.Option(
        "--share", help="Statistics of the data to put into the bundle, for other routing methods; repeatable. "
        "means tell which words the data are made of (all-means: best), a centroid what the inputs are about. "
        "Default: nothing.",
    ),
]  # fmt: skip


def order_from(
    *,
    data: DataFlag,
    name: NameFlag = None,
    seed: SeedFlag = 0,
    device: DeviceFlag = None,
    max_memory: MaxMemoryFlag = None,
    micro_batch: MicroBatchFlag = None,
    dtype: DtypeFlag = None,
    quantise: QuantiseFlag = None,
    recompute: RecomputeFlag = False,
    packing: PackingFlag = False,
    share: ShareFlag = None,
    **recipe: Any,
) -> "TrainingRequest":
    """Read what every verb that trains is told by its flags, and say what will be shared."""
    from client.training.plan import Thrift
    from client.training.request import TrainingRequest

    thrift = Thrift(dtype, quantise, recompute, packing, read_amounts(max_memory or ()))
    return TrainingRequest(data, name, seed, device, micro_batch, recipe, tell(share), thrift)


def training_flags(verb: Callable[..., None], without: frozenset[str] = frozenset()) -> Callable[..., None]:
    """Give a verb the flags of `order_from` and of the recipe, but for some; they arrive in its `**flags`."""
    named = [
        entry
        for each in (order_from, verb)
        for entry in inspect.signature(each).parameters.values()
        if entry.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    flags = [*named, *recipe_flags(without)]
    verb.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined] # read by inspect
    verb.__annotations__ = {entry.name: entry.annotation for entry in flags} | {"return": None}
    return verb


@app.command()
def init(
    *,
    coordinator: Annotated[str, typer.Option(help="The coordinator, host:port.")],
    name: Annotated[str | None, typer.Option(help="Name to enrol under; default: made from the key.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The pool's base model, a folder or Hugging Face id; default: the id the pool names."),
    ] = None,
    pool_key: Annotated[
        str | None,
        typer.Option(help="The key that must sign the pool, 64 hexadecimal digits; default: the key seen first."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="CA certificate of the coordinator, PEM; default: the system's.")
    ] = None,
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

    place = ClientWorkspace(workspace)
    flags: dict[str, object] = {
        "coordinator": coordinator, "name": name, "base": base, "pool_key": pool_key, "ca": ca, "license": license_id,
    }  # fmt: skip
    with storage():
        joined = join(place, flags, datetime.now(UTC))
    if pool_key is None:
        say(f"Trusting the pool's key {joined.pool.spec.coordinator} on first use; compare it with the operator's.")
    say(f"Joined the pool {joined.pool.spec.name} as {joined.settings.name}, base model {joined.pool.spec.base.name}.")
    typer.echo(joined.key.hex)


@app.command()
@training_flags
def train(
    *,
    input_column: InputFlag = None,
    target_column: TargetFlag = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Train gates together with the expert, to compare: such gates route worse.")
    ] = False,
    epsilon: Annotated[
        float | None, typer.Option(help="Promise every example differential privacy of this much, over all steps.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Its second figure; far less than one in the examples.")] = None,
    clip: Annotated[float, typer.Option(help="Norm to which the gradient of each example is clipped, for it.")] = 1.0,
    progress: ProgressFlag = Style.AUTO,
    workspace: WorkspaceFlag = Path(),
    **flags: Any,
) -> None:
    """Train an expert and its gates, and pack them into a signed bundle. Run again to resume.

    Nothing leaves this machine. Prints the bundle's digest and folder.

    Example: greylag-client train --data notes.jsonl --rank 8
    """
    promise = privacy(epsilon, delta, clip)
    order = replace(order_from(**flags), privacy=promise, joint=joint)
    _train(order, progress, workspace, input_column=input_column, target_column=target_column)


@app.command()
@partial(training_flags, without=EXPERT_FLAGS)
def gates(
    *,
    adapter: Annotated[
        str, typer.Option(help="Folder or Hugging Face id of a LoRA, rsLoRA, DoRA or (IA)3 adapter as PEFT saves it.")
    ],
    input_column: InputFlag = None,
    target_column: TargetFlag = None,
    progress: ProgressFlag = Style.AUTO,
    workspace: WorkspaceFlag = Path(),
    **flags: Any,
) -> None:
    """Train only the gates of an adapter that is there already, and pack both. Run again to resume.

    The adapter must have been trained on the pool's base model. Its files cannot prove that, so the loss on held-out
    rows is told with it and without. Nothing leaves this machine. Prints the bundle's digest and folder.

    Example: greylag-client gates --adapter my-lora --data notes.jsonl
    """
    order = replace(order_from(**flags), adapter=adapter)
    _train(order, progress, workspace, input_column=input_column, target_column=target_column)


def _train(order: "TrainingRequest", progress: Style, workspace: Path, **columns: str | None) -> None:
    from client.job import assist, produce

    place, settings = open_workspace(workspace, **columns)
    quiet_libraries(settings.base, *([order.adapter] if order.adapter else []))
    if not leads():
        assist(place, settings, order)
        return
    with at_work(place), show(progress) as report:
        bundle = produce(place, settings, order, report, datetime.now(UTC), say)
    say(f"The bundle {bundle.spec.name} is ready; send it with: greylag-client submit {bundle.spec.name}")
    typer.echo(f"{bundle.digest} {bundle.folder}")


@app.command()
@training_flags
def contribute(
    *,
    input_column: InputFlag = None,
    target_column: TargetFlag = None,
    wait: WaitFlag = False,
    give_up_after: GiveUpFlag = GIVE_UP_AFTER_S,
    progress: ProgressFlag = Style.AUTO,
    workspace: WorkspaceFlag = Path(),
    **flags: Any,
) -> None:
    """Train, pack and submit in one go. Run again to resume.

    Example: greylag-client contribute --data notes.jsonl --wait
    """
    from client.job import assist, produce

    place, settings = open_workspace(workspace, input_column=input_column, target_column=target_column)
    quiet_libraries(settings.base)
    order = order_from(**flags)
    if not leads():
        assist(place, settings, order)
        return
    with at_work(place), show(progress) as report:
        bundle = produce(place, settings, order, report, datetime.now(UTC), say)
        record = send_bundle(place, settings, bundle, report, wait=wait, give_up_after=give_up_after)
    show_records([record], as_json=False)
    check_verdict(record)


def tell(share: list[Share] | None) -> tuple[Share, ...]:
    """Say what each share tells others, before anything is computed."""
    for each in share or () if leads() else ():
        say(f"The bundle will tell others {TELLS[each]}")
    return tuple(share or ())


def privacy(epsilon: float | None, delta: float | None, clip: float) -> "Promise | None":
    """Read a promise from its flags.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    from pydantic import ValidationError

    from protocol.errors import Code, Refused
    from protocol.spec import Promise
    from protocol.statement import first_invalid

    if epsilon is None and delta is None:
        return None
    if epsilon is None or delta is None:
        raise Refused(Code.SETTINGS_INVALID, "--epsilon and --delta go together.", "Give both, or neither.")
    try:
        return Promise(epsilon=epsilon, delta=delta, clip=clip)
    except ValidationError as error:
        name, reason = first_invalid(error)
        raise Refused(Code.SETTINGS_INVALID, f"--{name} is out of range: {reason}.", "Give another value.") from error


# After the verbs above, so that --help lists all of them in the order in which a person comes to them.
for _verb in (submit.submit, submit.status, submit.verify, daemon.daemon):
    app.command()(_verb)
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run the program; every refusal ends in one sentence and a documented exit status."""
    run(app)


if __name__ == "__main__":
    main()
