"""The verb of greylag-router that scores methods on somebody's own tasks."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from protocol.errors import Code, Refused
from protocol.programs import needs, print_json, say, with_flags_of
from router.base.progress import show_bars
from router.cli import options
from router.cli.options import Json, NewTokens
from router.query.limits import DEFAULT_NEW_TOKENS

if TYPE_CHECKING:
    from router.evaluation.rows import Task

TasksFlag = Annotated[
    str | None, typer.Option(help="JSON Lines of task, input or messages, target or targets, choices; - reads stdin.")
]
RecipeFlag = Annotated[
    Path | None, typer.Option(help="Instead of --tasks, a published benchmark: a file of docs/recipes.")
]
DataFlag = Annotated[
    Path | None, typer.Option("--data", help="Folder that holds a recipe's data sets; default: the Hugging Face Hub.")
]
MethodsFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Routing methods (see `methods`), oracle and best-individual, with commas or repeated; "
        "default: base and the release's own."
    ),
]
MetricFlag = Annotated[
    Literal["exact", "normalised", "f1", "rouge-l"], typer.Option(help="What counts where the model writes freely.")
]
BatchFlag = Annotated[int, typer.Option(min=1, help="Sequences in memory at once; each choice of a row is one.")]
LimitFlag = Annotated[int | None, typer.Option(min=1, help="Rows of each task, the first ones; default: all.")]
InputTokensFlag = Annotated[
    int | None, typer.Option(min=1, help="Cut longer inputs: an encoder keeps the beginning, a decoder the end.")
]
OutputFlag = Annotated[
    Path | None, typer.Option(help="Folder for scores and answers; run again to go on where it ended.")
]


@with_flags_of(options.model, options.choice)
def evaluate(
    *,
    tasks: TasksFlag = None,
    recipe: RecipeFlag = None,
    data: DataFlag = None,
    methods: MethodsFlag = None,
    metric: MetricFlag = "exact",
    batch_size: BatchFlag = 16,
    limit: LimitFlag = None,
    max_input_tokens: InputTokensFlag = None,
    max_new_tokens: NewTokens = DEFAULT_NEW_TOKENS,
    output: OutputFlag = None,
    json_: Json = False,
    **flags: Any,
) -> None:
    """Score routing methods on your own tasks: a table of tasks and methods, and the mean.

    Rows with choices are ranked: the choice whose tokens are likeliest on average is the answer. Other rows are
    written freely and compared with their targets.

    Example: greylag-router evaluate --tasks my.jsonl --methods base,phatgoose,merged,oracle --output scores
    """
    from router.evaluation.contenders import read_methods

    routing = options.read_choice(flags)
    names = read_methods(methods) if methods else []
    read, longest = _read_tasks(tasks, recipe, data, limit)
    model = options.open_model(flags, [routing.release])

    from rich.console import Console

    from router.evaluation import report
    from router.evaluation.compare import Comparing
    from router.evaluation.prompts import BatchLimits
    from router.evaluation.results import Results

    limits = BatchLimits(batch_size, max_new_tokens, max_input_tokens or longest)
    memory = Results(output, model, limits) if output else None
    names = names or list(dict.fromkeys(["base", model.held.find(routing.release).settings.method]))
    # On a terminal there are bars.
    told = (lambda _: None) if sys.stderr.isatty() else say
    found = Comparing(model, routing, limits, metric, told, memory).run(read, names)
    if json_:
        print_json(report.as_json(found))
    else:
        Console().print(report.as_table(found))


def _read_tasks(
    tasks: str | None, recipe: Path | None, data: Path | None, limit: int | None
) -> "tuple[list[Task], int | None]":
    """Read rows from a file or by a recipe; with the latter comes a limit of their length."""
    from router.evaluation.recipes import cook, read_recipe
    from router.evaluation.rows import read_rows

    if recipe is not None and tasks is None:
        read = read_recipe(recipe)
        return cook(read, data=data, limit=limit), read.max_input_tokens
    if tasks is None or recipe is not None or data is not None:
        raise Refused(
            Code.REQUEST_INVALID,
            "Rows come either from --tasks or from --recipe, and --data belongs to a recipe.",
            "Give --tasks FILE, or --recipe FILE with or without --data FOLDER.",
        )
    return read_rows(options.read_lines(tasks), name="tasks" if tasks == "-" else Path(tasks).stem, limit=limit), None


def lm_eval(ctx: typer.Context) -> None:
    """Run the command of lm-evaluation-harness, to which this adds `--model greylag`.

    All that follows is the harness's own; `greylag-router lm-eval ls tasks` lists its tasks. In --model_args stand
    workspace or saved, base, embedding, quantise, method, k, temperature, release, max_length and max_gen_toks.

    Example: greylag-router lm-eval --model greylag --model_args workspace=node,method=merged --tasks boolq
    """
    needs("lm_eval", "harness", "lm-eval")
    from lm_eval.__main__ import cli_evaluate

    import router.evaluation.lm_eval  # noqa: F401 - its import registers the model

    show_bars()
    sys.argv = ["lm_eval", *ctx.args]
    cli_evaluate()
