"""The verbs of the transparency log: `log show`, `log checkpoint`, `log verify`."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import JsonOption, WorkspaceOption
from coordinator.cli.output import opened_workspace, table
from protocol.errors import Code, Refused
from protocol.programs import print_json, put, say

log = typer.Typer(help="Show and verify the log of every key, bundle, decision and release.", no_args_is_help=True)
_SHOWN, _DIGITS = 50, 16


@log.command("show")
def log_show(
    *,
    start: Annotated[
        int | None, typer.Option("--from", min=1, help="First entry; default: the last of --count.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="Entries at most.")] = _SHOWN,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """List entries of the log, oldest first.

    Example: greylag-coordinator log show --from 1 --json
    """
    from protocol.log.leaf import read_leaf

    with opened_workspace(workspace) as open_:
        size = open_.registry.log.size()
        first = max(0, size - count) if start is None else start - 1
        rows = [read_leaf(leaf).model_dump() for leaf in open_.registry.log.leaves(first, count)]
    if as_json:
        print_json({"size": size, "entries": rows})
    else:
        columns = ("number", "at", "kind", "subject", "step", "actor", "code")
        table(columns, ([str(row[name])[: 64 if name == "at" else _DIGITS] for name in columns] for row in rows))


@log.command("checkpoint")
def log_checkpoint(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """Sign the log as it is, and print the checkpoint, to be compared with what others were shown.

    Example: greylag-coordinator log checkpoint
    """
    with opened_workspace(workspace) as open_:
        signed = open_.checkpoints.newest()
    if as_json:
        print_json({"size": signed.size, "root": signed.root.hex(), "checkpoint": signed.text()})
    else:
        put(signed.text().rstrip("\n"))


@log.command("verify")
def log_verify(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """Hold the log against its tree, the registry's tables, and the last checkpoint that was signed here.

    Example: greylag-coordinator log verify
    """
    from coordinator.registry.log_check import contradictions

    with opened_workspace(workspace) as open_:
        faults, size = contradictions(open_.registry), open_.registry.log.size()
        if as_json:
            print_json({"size": size, "faults": faults})
        check_faults(faults)
        open_.checkpoints.check()
    say(f"The log's {size} entries are whole, and are what the registry says.")


def check_faults(faults: list[str]) -> None:
    """Refuse a log that contradicts the registry, naming a few of the faults (`LOG_OMISSION`)."""
    if faults:
        shown, more = " ".join(faults[:5]), len(faults) - 5
        raise Refused(
            Code.LOG_OMISSION,
            f"The log and the registry contradict each other. {shown}" + (f" And {more} more." if more > 0 else ""),
            "Restore the registry from a copy, then run: greylag-coordinator fsck",
        )
