"""A coordinator in this process, and a bundle for it."""

from collections.abc import Iterator

import pytest

from protocol.documents import Pool
from protocol.signing import Identity
from protocol.v1.intake_pb2 import StatusReply
from tests import factories
from tests.client.conftest import Site
from tests.client.fake_coordinator import FakeCoordinator, serving


@pytest.fixture
def fake(t5_pool: Pool, operator: Identity) -> FakeCoordinator:
    return FakeCoordinator(t5_pool, operator, states=[StatusReply(state="released")])


@pytest.fixture
def address(fake: FakeCoordinator) -> Iterator[str]:
    with serving(fake) as address:
        yield address


@pytest.fixture
def packed(site: Site, monkeypatch: pytest.MonkeyPatch, address: str) -> Site:
    """A workspace with one finished bundle, without the training."""
    monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
    site.workspace.bundles.mkdir()
    factories.make_bundle(site.workspace.bundles / "anna", site.pool, site.contributor, name="anna")
    return site
