"""greylag-coordinator: runs a pool."""

import typer

from coordinator.cli.campaigns import campaign, candidates
from coordinator.cli.conformance import conformance
from coordinator.cli.enrolment import contributors, invites
from coordinator.cli.experts import experts, releases
from coordinator.cli.init import InitVerb, init
from coordinator.cli.log import log
from coordinator.cli.processes import fleet, serve, worker
from coordinator.cli.roles import roles
from coordinator.cli.simulate import simulate
from coordinator.cli.switches import intake, pool
from coordinator.cli.upkeep import fsck, keys, migrate
from protocol.programs import run

app = typer.Typer(
    help="Run a pool: take experts in, judge them, publish releases.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=InitVerb)(init)
for verb in (serve, worker, fleet, fsck, migrate, conformance):
    app.command()(verb)
app.add_typer(experts, name="experts")
app.add_typer(releases, name="releases")
app.add_typer(contributors, name="contributors")
app.add_typer(invites, name="invites")
campaign.callback(invoke_without_command=True)(simulate)
app.add_typer(campaign, name="campaign")
app.add_typer(candidates, name="candidates")
app.add_typer(log, name="log")
app.add_typer(roles, name="roles")
app.add_typer(keys, name="keys")
app.add_typer(pool, name="pool")
app.add_typer(intake, name="intake")


def main() -> None:
    """Run the program."""
    run(app)


if __name__ == "__main__":
    main()
