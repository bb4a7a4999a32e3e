"""The verbs of greylag-router in this process, and a workspace to call them in."""

from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from protocol.signing import Identity
from router.cli.main import app
from tests import factories
from tests.router.catalog import Catalog, serving


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result


def pulled_node(base: Path, folder: Path) -> Path:
    """Make a workspace in a folder, with a release of two experts, ada's reverse and copy."""
    identity = Identity.generate()
    catalog = Catalog(factories.make_pool(base, identity), identity)
    bundles = [
        factories.make_bundle(folder / name, catalog.pool, identity, name=name, seed=at)
        for at, name in enumerate(("reverse", "copy"))
    ]
    catalog.publish(bundles, number=1)
    with serving(catalog) as address:
        call("pull", "-w", folder / "node", "--coordinator", address, "--base", base)
    return folder / "node"
