"""greylag-coordinator: runs a pool."""

import sys

import typer

from coordinator.verbs.founding import init
from coordinator.verbs.processes import serve, worker
from coordinator.verbs.records import contributors, experts, releases
from coordinator.verbs.upkeep import fsck, migrate
from protocol.errors import GreylagError

app = typer.Typer(
    help="Run a pool: take experts in, judge them, publish releases.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (init, serve, worker, fsck, migrate):
    app.command()(verb)
app.add_typer(experts, name="experts")
app.add_typer(releases, name="releases")
app.add_typer(contributors, name="contributors")


def main() -> None:
    """Run one verb; what goes wrong is one sentence on stderr and an exit status from the error table."""
    try:
        app()
    except GreylagError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        sys.exit(error.code.fate.exit)


if __name__ == "__main__":
    main()
