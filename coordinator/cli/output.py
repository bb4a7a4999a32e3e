"""What every verb shares: where the workspace is, one JSON document or one table on stdout, talk on stderr."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.printable import printable
from protocol.programs import configure_logs, print_json

if TYPE_CHECKING:
    from coordinator.workspace.context import Opened

_PIPE_WIDTH = 200
MOST_LETTERS = 500
"""Longest reason of an operator; a signed decision takes no more."""

WorkspaceOption = Annotated[
    Path,
    typer.Option("--workspace", "-w", envvar="GREYLAG_WORKSPACE", help="Workspace: the folder with coordinator.toml."),
]
CertOption = Annotated[Path | None, typer.Option(help="Certificate chain, PEM; needed beyond loopback.")]
KeyOption = Annotated[Path | None, typer.Option(help="Its private key, PEM.")]


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > MOST_LETTERS:
        raise typer.BadParameter(f"it is one line of 1 to {MOST_LETTERS} letters")
    return text


ReasonOption = Annotated[
    str,
    typer.Option(callback=_one_line, help="One public sentence: it is kept, and the contributors concerned see it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        drawn.add_row(*(Text(printable(str(cell))) for cell in row))  # Text: names are not markup
    # A pipe has no width; whatever reads it should get whole digests.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(drawn)


def show_rows(kind: str, columns: Sequence[str], rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Write rows as a document, whole, or as a table of some columns with digests cut short."""
    if as_json:
        print_json({kind: rows})
    else:
        table(columns, ([str(row[name])[:16] if name == "digest" else row[name] for name in columns] for row in rows))


def fields(row: object, *names: str) -> dict[str, Any]:
    """Take columns out of a row."""
    return {name: getattr(row, name) for name in names}


@contextmanager
def opened_workspace(folder: Path) -> "Iterator[Opened]":
    """Open a workspace for a verb that shows or decides."""
    from coordinator.workspace.context import opened
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load

    configure_logs()
    place = CoordinatorWorkspace(folder)
    with opened(place, load(place)) as open_:
        yield open_
