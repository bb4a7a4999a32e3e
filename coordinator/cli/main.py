"""greylag-coordinator: runs a pool."""

import os
import sys

import typer

from coordinator.cli.campaigns import campaign, candidates, fleet
from coordinator.cli.experts import contributors, experts, releases
from coordinator.cli.init import init
from coordinator.cli.output import say
from coordinator.cli.processes import serve, worker
from coordinator.cli.simulate import simulate
from coordinator.cli.upkeep import fsck, migrate
from protocol.errors import GreylagError, from_os_error

app = typer.Typer(
    help="Run a pool: take experts in, judge them, publish releases.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (init, serve, worker, fleet, fsck, migrate):
    app.command()(verb)
app.add_typer(experts, name="experts")
app.add_typer(releases, name="releases")
app.add_typer(contributors, name="contributors")
campaign.callback(invoke_without_command=True)(simulate)
app.add_typer(campaign, name="campaign")
app.add_typer(candidates, name="candidates")


def main() -> None:
    """Run the program; every refusal ends in one sentence and a documented exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else the library narrates handshakes on stderr
    try:
        try:
            app()
        except OSError as error:
            raise from_os_error(error) from error
    except GreylagError as error:
        say(f"error: {error.message} [{error.code.name}]")
        if error.hint:
            say(f"hint: {error.hint}")
        sys.exit(error.code.fate.exit)


if __name__ == "__main__":
    main()
