"""What all verbs of the command line share: flags, settings, hints."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperCommand, TyperOption

from client.cli.progress import Style
from protocol.errors import GreylagError

if TYPE_CHECKING:
    from client.workspace.paths import ClientWorkspace

WorkspaceFlag = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="GREYLAG_WORKSPACE", help="Workspace: the folder with client.toml.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Wait for the verdict.")]
GiveUpFlag = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Seconds without any progress, or of waiting, after which to give up; default: 600, but a few where "
        "nobody answers from the start.",
    ),
]
ProgressFlag = Annotated[Style, typer.Option(help="How to show progress on stderr.")]


class Verb(TyperCommand):
    """A verb whose hints carry the workspace that it was given."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except GreylagError as error:
            error.hint = in_workspace(error.hint, ctx.params.get("workspace", Path()))
            raise


class TrainingVerb(Verb):
    """A verb with a flag for each field of the recipe."""

    without: frozenset[str] = frozenset()
    """Fields that it has no use for."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._own: list[click.Parameter] = vars(self).pop("params")

    @cached_property
    def params(self) -> list[click.Parameter]:  # type: ignore[override] # nobody puts another list there
        """Its flags."""
        from protocol.spec import recipe_flags  # pydantic: not before the verb, or its help, is asked for

        return [*self._own, *recipe_flags(TyperOption, "Recipe (default: the pool's)", self.without)]


class GatesVerb(TrainingVerb):
    """Where the expert is there already."""

    without = frozenset({"kind", "rank", "alpha", "activation", "expert_steps"})


def in_workspace(text: str, workspace: Path) -> str:
    """Add the workspace that was given to commands in a sentence, so that they can be typed as they stand."""
    if workspace == Path() or "-w " in text:
        return text
    return re.sub(r"greylag-client (?:keys )?[a-z]+(?:-[a-z]+)*", rf"\g<0> -w {shlex.quote(str(workspace))}", text)


def open_workspace(root: Path, **flags: object) -> "ClientWorkspace":
    """Open a workspace that was made, with its settings under the flags.

    Raises:
        Refused: `WORKSPACE_MISSING` or `SETTINGS_INVALID`.
    """
    from client.workspace.paths import ClientWorkspace

    workspace = ClientWorkspace(root, **flags)
    _ = workspace.settings
    return workspace


@contextmanager
def at_work(workspace: "ClientWorkspace") -> Iterator[None]:
    """Keep the workspace to this process, and turn a full disk into a sentence."""
    from client.workspace.disk import storage

    with storage(), workspace.lock():
        yield
