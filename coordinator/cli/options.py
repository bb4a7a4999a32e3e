"""Flags that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

_MOST_LETTERS = 500
"""Longest reason of an operator; a signed decision takes no more."""

WorkspaceOption = Annotated[
    Path,
    typer.Option("--workspace", "-w", envvar="GREYLAG_WORKSPACE", help="Workspace: the folder with coordinator.toml."),
]
CertOption = Annotated[Path | None, typer.Option(help="Certificate chain, PEM; needed beyond loopback.")]
KeyOption = Annotated[Path | None, typer.Option(help="Its private key, PEM.")]
JsonLogOption = Annotated[bool, typer.Option("--json-log", help="Write log lines as JSON.")]


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > _MOST_LETTERS:
        raise typer.BadParameter(f"it is one line of 1 to {_MOST_LETTERS} letters")
    return text


ReasonOption = Annotated[
    str,
    typer.Option(callback=_one_line, help="One public sentence: it is kept, and the contributors concerned see it."),
]
ActOption = Annotated[
    Path | None, typer.Option("--act", help="What operators signed together, where the pool's root names some.")
]
NumberArgument = Annotated[int, typer.Argument(min=0, max=(1 << 31) - 1, help="0 for the newest.")]
DigestArgument = Annotated[str, typer.Argument(help="Eight or more digits of the digest.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
MetricsOption = Annotated[
    str | None, typer.Option(help="host:port where GET /metrics answers, in plain HTTP; default: nowhere.")
]
