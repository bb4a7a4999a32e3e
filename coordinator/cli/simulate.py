"""`campaign --simulate N`: try a campaign on this machine before contributors are asked."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.campaigns import Kind
from coordinator.cli.options import JsonOption, WorkspaceOption
from coordinator.cli.output import opened_workspace, table
from protocol.programs import configure_logs, print_json


def simulate(
    context: typer.Context,
    *,
    simulate: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Run a campaign over so many virtual contributors.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What the virtual contributors are asked.")] = "train",
    failing: Annotated[float, typer.Option(min=0, max=1, help="Share of them that die over every message.")] = 0.0,
    late: Annotated[float, typer.Option(min=0, max=1, help="Share of them that come late.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of who fails, who is late and what they answer.")] = 0,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Ask all contributors' daemons something, and see what they say.

    With --simulate nobody is asked: virtual contributors of this machine answer, with figures that are drawn, to the
    coordinator and through the node's app that real campaigns run. Nothing in the workspace is touched; where there is
    one, its pool's policy holds.

    Example: greylag-coordinator campaign --simulate 200 --kind evaluate --failing 0.1 --late 0.1
    """
    if context.invoked_subcommand is not None:
        if simulate is not None:
            raise typer.BadParameter("it stands alone: leave out the command after it", param_hint="--simulate")
        return
    if simulate is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)

    import logging
    from tempfile import TemporaryDirectory

    from coordinator.fleet.flower.gateway import quiet_flower
    from coordinator.workspace.paths import CoordinatorWorkspace

    policy = None
    if CoordinatorWorkspace(workspace).settings.is_file():
        with opened_workspace(workspace) as open_:
            policy = open_.pool.spec.policy
    configure_logs(level=logging.WARNING)
    with TemporaryDirectory() as folder:
        quiet_flower(Path(folder) / "home")
        from coordinator.fleet.simulation import simulate as simulation

        crowd = {"failing": failing, "late": late}
        told = simulation.simulate(Path(folder), kind, simulate, **crowd, seed=seed, policy=policy)
    if as_json:
        print_json(told)
    else:
        table(
            ("field", "value"),
            [(name, ", ".join(value) if name in {"failed", "silent"} else value) for name, value in told.items()],
        )
