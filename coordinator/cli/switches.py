"""The verbs that shut and open: `pool freeze` and `thaw`, `pool read-only` and `read-write`, `intake off` and `on`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coordinator.cli.options import ReasonOption, WorkspaceOption
from coordinator.cli.output import now, opened_workspace
from protocol.programs import say

if TYPE_CHECKING:
    from coordinator.policy.switches import Switch

pool = typer.Typer(help="Shut a pool in an emergency, and open it again.", no_args_is_help=True)
intake = typer.Typer(help="Shut the door to bundles and keys, and open it again.", no_args_is_help=True)


@pool.command("freeze")
def pool_freeze(*, reason: ReasonOption, workspace: WorkspaceOption = Path()) -> None:
    """Take nothing in and let nothing new into a release; what is released stays, and can be yanked.

    Example: greylag-coordinator pool freeze --reason "A key was stolen; we look into it."
    """
    from coordinator.policy.switches import Switch

    _throw(workspace, Switch.POOL, reason)


@pool.command("thaw")
def pool_thaw(*, workspace: WorkspaceOption = Path()) -> None:
    """Go on after `pool freeze`.

    Example: greylag-coordinator pool thaw
    """
    from coordinator.policy.switches import Switch

    _reset(workspace, Switch.POOL)


@pool.command("read-only")
def pool_read_only(*, reason: ReasonOption, workspace: WorkspaceOption = Path()) -> None:
    """Write nothing at all, not even a verdict, a yank or a renewed release; what is there is handed out.

    Example: greylag-coordinator pool read-only --reason "We move to another machine."
    """
    from coordinator.policy.switches import Switch

    _throw(workspace, Switch.REGISTRY, reason)


@pool.command("read-write")
def pool_read_write(*, workspace: WorkspaceOption = Path()) -> None:
    """Go on after `pool read-only`.

    Example: greylag-coordinator pool read-write
    """
    from coordinator.policy.switches import Switch

    _reset(workspace, Switch.REGISTRY)


@intake.command("off")
def intake_off(*, reason: ReasonOption, workspace: WorkspaceOption = Path()) -> None:
    """Take no keys and no bundles; what has arrived is judged and released.

    Example: greylag-coordinator intake off --reason "The disk is being replaced."
    """
    from coordinator.policy.switches import Switch

    _throw(workspace, Switch.INTAKE, reason)


@intake.command("on")
def intake_on(*, workspace: WorkspaceOption = Path()) -> None:
    """Go on after `intake off`.

    Example: greylag-coordinator intake on
    """
    from coordinator.policy.switches import Switch

    _reset(workspace, Switch.INTAKE)


def _throw(folder: Path, switch: "Switch", reason: str) -> None:
    with opened_workspace(folder) as open_:
        open_.registry.switches.throw(switch, reason, pool=open_.pool.digest, now=now())
    say(f"The {switch} is closed: {reason}")


def _reset(folder: Path, switch: "Switch") -> None:
    with opened_workspace(folder) as open_:
        open_.registry.switches.reset(switch, pool=open_.pool.digest, now=now())
    say(f"The {switch} is open.")
