"""What all verbs of the command line share: flags, settings, errors as sentences."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.progress import Style

if TYPE_CHECKING:
    from client.workspace.paths import ClientWorkspace
    from client.workspace.settings import ClientSettings

WorkspaceFlag = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="GREYLAG_WORKSPACE", help="Workspace: the folder with client.toml.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Wait for the verdict.")]
GiveUpFlag = Annotated[
    float, typer.Option(min=0, help="Seconds without any progress, or of waiting, after which to give up.")
]
ProgressFlag = Annotated[Style, typer.Option(help="How to show progress on stderr.")]

# Named here, too, so that --help needs no pydantic; a test holds the names against the Recipe.
RECIPE_FLAGS: dict[str, tuple[type, str]] = {
    "kind": (str, "What the expert is: lora, rslora, dora, ia3 or bottleneck."),
    "rank": (int, "Rank r of every module; (IA)3 has none."),
    "alpha": (float, "The expert is scaled by alpha / rank, for rslora by alpha / sqrt(rank)."),
    "activation": (str, "What stands inside a bottleneck adapter: relu or gelu."),
    "learning_rate": (float, "Peak learning rate of AdamW."),
    "warmup_ratio": (float, "Share of the steps over which the learning rate rises, 0 to 1."),
    "weight_decay": (float, "Weight decay of AdamW."),
    "expert_steps": (int, "Optimiser steps for the expert."),
    "gate_steps": (int, "Optimiser steps for its gates."),
    "batch_size": (int, "Examples a step."),
    "eval_every": (int, "Steps between two looks at the held-out rows."),
    "patience": (int, "Looks without a better loss after which to stop; 0 trains all the steps."),
    "held_out": (float, "Share of the rows held out, 0 to 1."),
    "max_input_tokens": (int, "Longest accepted input, in tokens."),
    "max_target_tokens": (int, "Longest accepted target, in tokens."),
}


EXPERT_FLAGS = frozenset({"kind", "rank", "alpha", "activation", "expert_steps"})
"""Of no use where the expert is there already."""


def recipe_flags(without: frozenset[str]) -> list[inspect.Parameter]:
    """One flag for each field of the recipe, but for some."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, typer.Option(help=text, rich_help_panel="Recipe (default: the pool's)")],
        )
        for name, (kind, text) in RECIPE_FLAGS.items()
        if name not in without
    ]


def open_workspace(root: Path, **flags: object) -> "tuple[ClientWorkspace, ClientSettings]":
    """Read a workspace's settings, under the flags.

    Raises:
        Refused: `WORKSPACE_MISSING` or `SETTINGS_INVALID`.
    """
    from client.workspace import settings
    from client.workspace.paths import ClientWorkspace

    workspace = ClientWorkspace(root)
    return workspace, settings.read(workspace.settings_file, **flags)


@contextmanager
def at_work(workspace: "ClientWorkspace") -> Iterator[None]:
    """Keep the workspace to this process, and turn a full disk into a sentence."""
    from client.workspace.disk import storage

    with storage(), workspace.lock():
        yield
